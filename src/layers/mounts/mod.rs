//! The mount table: what is visible, where, writable or not. Plan here; [`arm`] turns it into prepared
//! operations, [`apply`] does them in the child.

pub(crate) mod apply;
pub(crate) mod arm;
mod resolve;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Shortfall;
use crate::host::{Files, Host, ProcMask};
use crate::layers::landlock::Grant;
use crate::profile::model::{Mount, MountKind, Origin, Profile, RootAccess};
use crate::profile::variables::Variables;
use crate::sys::Errno;

pub use resolve::{MountError, Source};

/// The device nodes of a minimal `/dev`.
pub const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEFAULT_TMPFS_BYTES: u64 = 64 << 20;

/// The mount table of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountsPlan {
    /// There is a mount namespace and the table is mounted; else it only feeds Landlock.
    pub applied: bool,
    /// What `/` is.
    pub root: RootPlan,
    /// In the order in which they are mounted, parents first.
    pub entries: Vec<Entry>,
}

/// What `/` is inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RootPlan {
    /// An empty read-only tmpfs that holds the mount points.
    Composed,
    /// A directory of the host.
    Directory {
        /// Which.
        source: Source,
        /// How.
        access: RootAccess,
    },
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Absolute, normal path inside.
    pub destination: PathBuf,
    /// What is there.
    pub content: Content,
    /// Directories to make first, outermost first (they lie in a file system of the sandbox's own).
    #[serde(skip)]
    pub make_parents: Vec<PathBuf>,
    /// The mount point itself must be made.
    #[serde(skip)]
    pub make_target: bool,
    /// Where the profile says so.
    pub origin: Origin,
}

/// What a mount shows, resolved against this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// A tree of the host.
    Bind {
        /// Which.
        source: Source,
        /// May be written.
        writable: bool,
        /// May be executed from.
        executable: bool,
        /// The caller's files appear as the command's own.
        caller_owned: bool,
    },
    /// Memory.
    Tmpfs {
        /// `size=`
        size_bytes: u64,
        /// `nr_inodes=`
        inodes: u64,
        /// Permission bits.
        mode: u32,
        /// May be executed from.
        executable: bool,
    },
    /// Processes.
    Proc {
        /// `subset=pid`
        pid_only: bool,
        /// What is covered.
        masks: Vec<ProcMask>,
    },
    /// Devices.
    Dev,
    /// Message queues.
    Mqueue,
    /// A link.
    Symlink {
        /// Its text.
        to: PathBuf,
    },
    /// A read-only file.
    File {
        /// Its bytes.
        #[serde(skip)]
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// Host directories under a throw-away layer.
    Overlay {
        /// Uppermost first.
        lower: Vec<Source>,
        /// Bound of the upper layer.
        size_bytes: u64,
    },
    /// Nothing to see.
    Mask {
        /// Covers a directory.
        directory: bool,
    },
}

impl Entry {
    /// The host path a bind shows, else the destination.
    pub(crate) fn host_path(&self) -> PathBuf {
        match &self.content {
            Content::Bind { source, .. } => source.path.clone(),
            _ => self.destination.clone(),
        }
    }
}

impl MountsPlan {
    /// The grant on `/` that goes with the root.
    pub(crate) fn root_grant(&self) -> Option<Grant> {
        if !self.applied {
            return None;
        }
        Some(match &self.root {
            RootPlan::Composed => Grant::List,
            RootPlan::Directory {
                access: RootAccess::ReadOnly,
                ..
            } => Grant::ReadExecute,
            RootPlan::Directory { .. } => Grant::WriteExecute,
        })
    }

    /// The deepest entry at or above a path.
    #[must_use]
    pub fn covering(&self, inside: &Path) -> Option<&Entry> {
        self.entries
            .iter()
            .filter(|e| inside.starts_with(&e.destination))
            .max_by_key(|e| e.destination.components().count())
    }

    /// The host path that a path inside shows, following the links of the table (not those on disk).
    #[must_use]
    pub fn to_host(&self, inside: &Path) -> Option<PathBuf> {
        if !self.applied {
            return Some(inside.to_owned());
        }
        let mut path = inside.to_owned();
        for _ in 0..8 {
            let Some(entry) = self.covering(&path) else {
                return match &self.root {
                    RootPlan::Directory { source, .. } => Some(join(&source.path, Path::new("/"), &path)),
                    RootPlan::Composed => None,
                };
            };
            match &entry.content {
                Content::Bind { source, .. } => return Some(join(&source.path, &entry.destination, &path)),
                Content::Overlay { lower, .. } => {
                    return lower
                        .first()
                        .map(|source| join(&source.path, &entry.destination, &path));
                }
                Content::Symlink { to } => {
                    let parent = entry.destination.parent().unwrap_or(Path::new("/"));
                    let rest = path.strip_prefix(&entry.destination).unwrap_or(Path::new(""));
                    path = normalise(&parent.join(to).join(rest));
                }
                _ => return None,
            }
        }
        None
    }

    /// Where inside a host path is shown, if anywhere.
    #[must_use]
    pub fn to_inside(&self, host: &Path) -> Option<PathBuf> {
        if !self.applied {
            return Some(host.to_owned());
        }
        let candidates = self.entries.iter().filter_map(|entry| match &entry.content {
            Content::Bind { source, .. } if host.starts_with(&source.path) => {
                Some(join(&entry.destination, &source.path, host))
            }
            _ => None,
        });
        let root = match &self.root {
            RootPlan::Directory { source, .. } if host.starts_with(&source.path) => {
                Some(join(Path::new("/"), &source.path, host))
            }
            _ => None,
        };
        candidates
            .chain(root)
            .find(|inside| self.to_host(inside).as_deref() == Some(host))
    }
}

/// `path` with the prefix `old` replaced by `new`.
fn join(new: &Path, old: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(old) {
        Ok(rest) if rest.as_os_str().is_empty() => new.to_owned(),
        Ok(rest) => new.join(rest),
        Err(_) => path.to_owned(),
    }
}

/// Takes `.` and `..` out by text.
pub(crate) fn normalise(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    clean
}

/// Resolves the table against this host.
pub(crate) fn plan(
    profile: &Profile,
    host: &Host,
    files: &dyn Files,
    variables: &Variables,
    applied: bool,
) -> Result<(MountsPlan, Vec<Shortfall>), MountError> {
    let root = match &profile.root {
        Some(root) if applied => {
            let path = expand(&root.path, variables, &root.origin)?;
            let source = resolve::resolve(files, &path, &root.origin)?;
            if !source.directory {
                return Err(MountError::NotADirectory {
                    path,
                    origin: root.origin.clone(),
                });
            }
            RootPlan::Directory {
                source,
                access: root.access,
            }
        }
        _ => RootPlan::Composed,
    };
    let mut plan = MountsPlan {
        applied,
        root,
        entries: Vec::new(),
    };
    for mount in &profile.mounts {
        let destination = expand(&mount.destination, variables, &mount.origin)?;
        let Some(content) = content(mount, &destination, profile, host, files, variables, &plan)? else {
            continue;
        };
        let mut entry = Entry {
            destination,
            content,
            make_parents: Vec::new(),
            make_target: true,
            origin: mount.origin.clone(),
        };
        if applied {
            mount_point(&plan, &mut entry, files)?;
        }
        plan.entries
            .retain(|other| other.destination != entry.destination);
        plan.entries.push(entry);
    }
    Ok((plan, Vec::new()))
}

fn expand(text: &str, variables: &Variables, origin: &Origin) -> Result<PathBuf, MountError> {
    let expanded = variables.expand(text).map_err(|error| MountError::Variable {
        text: text.to_owned(),
        error: error.to_string(),
        origin: origin.clone(),
    })?;
    let path = PathBuf::from(expanded);
    if !path.is_absolute() {
        return Err(MountError::Relative {
            path,
            origin: origin.clone(),
        });
    }
    Ok(normalise(&path))
}

fn content(
    mount: &Mount,
    destination: &Path,
    profile: &Profile,
    host: &Host,
    files: &dyn Files,
    variables: &Variables,
    plan: &MountsPlan,
) -> Result<Option<Content>, MountError> {
    let tmpfs_size = |size: Option<u64>| {
        let limits = &profile.limits;
        size.or(limits.tmpfs_bytes)
            .unwrap_or_else(|| limits.memory_bytes.unwrap_or(DEFAULT_TMPFS_BYTES))
    };
    Ok(Some(match &mount.kind {
        MountKind::Bind {
            source,
            writable,
            executable,
            optional,
            caller_owned,
        } => {
            let path = expand(source, variables, &mount.origin)?;
            // On hosts with a merged /usr, /bin is a link: inside it becomes the same link, which costs no mount.
            if path == destination
                && let Some(to) = resolve::trusted_link(files, &path)
            {
                return Ok(Some(Content::Symlink { to }));
            }
            match resolve::resolve(files, &path, &mount.origin) {
                Ok(source) => Content::Bind {
                    source,
                    writable: *writable,
                    executable: *executable,
                    caller_owned: *caller_owned || *writable,
                },
                // What the caller cannot reach is not there for the caller.
                Err(
                    MountError::Missing { .. }
                    | MountError::Unreadable {
                        errno: Errno::EACCES, ..
                    },
                ) if *optional => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        MountKind::Tmpfs {
            size_bytes,
            inodes,
            mode,
            executable,
        } => {
            let size_bytes = tmpfs_size(*size_bytes);
            let inodes = inodes.unwrap_or((size_bytes / 4096).max(64));
            Content::Tmpfs {
                size_bytes,
                inodes,
                mode: *mode,
                executable: *executable,
            }
        }
        MountKind::Proc { pid_only } => {
            if plan.applied && !profile.namespaces.pid {
                return Err(MountError::ProcWithoutPidNamespace {
                    origin: mount.origin.clone(),
                });
            }
            let masks = if *pid_only {
                Vec::new()
            } else {
                host.proc_masks.clone()
            };
            Content::Proc {
                pid_only: *pid_only,
                masks,
            }
        }
        MountKind::Dev => Content::Dev,
        MountKind::Mqueue => Content::Mqueue,
        MountKind::Symlink { to } => {
            let to = variables.expand(to).map_err(|error| MountError::Variable {
                text: to.clone(),
                error: error.to_string(),
                origin: mount.origin.clone(),
            })?;
            Content::Symlink { to: to.into() }
        }
        MountKind::File { content, mode } => {
            let content = variables.expand(content).map_err(|error| MountError::Variable {
                text: content.clone(),
                error: error.to_string(),
                origin: mount.origin.clone(),
            })?;
            Content::File {
                content: content.into_encoded_bytes(),
                mode: *mode,
            }
        }
        MountKind::Directory { mode } => Content::Directory { mode: *mode },
        MountKind::Overlay { lower, size_bytes } => {
            let mut sources = Vec::new();
            for path in lower {
                let path = expand(path, variables, &mount.origin)?;
                let source = resolve::resolve(files, &path, &mount.origin)?;
                if !source.directory {
                    return Err(MountError::NotADirectory {
                        path,
                        origin: mount.origin.clone(),
                    });
                }
                sources.push(source);
            }
            Content::Overlay {
                lower: sources,
                size_bytes: tmpfs_size(*size_bytes),
            }
        }
        MountKind::Mask => {
            // What is not there needs no hiding.
            let Some(host_path) = plan.to_host(destination) else {
                return Ok(None);
            };
            match resolve::resolve(files, &host_path, &mount.origin) {
                Ok(source) => Content::Mask {
                    directory: source.directory,
                },
                Err(MountError::Missing { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }))
}

/// Finds out what must be made for a mount point, and refuses what would have to be made on the host.
fn mount_point(plan: &MountsPlan, entry: &mut Entry, files: &dyn Files) -> Result<(), MountError> {
    let destination = &entry.destination;
    if destination == Path::new("/") {
        return Err(MountError::CoversRoot {
            origin: entry.origin.clone(),
        });
    }
    if destination.components().count() > 64 {
        return Err(MountError::TooDeep {
            path: destination.clone(),
            origin: entry.origin.clone(),
        });
    }
    let cover = plan.covering(destination.parent().unwrap_or(Path::new("/")));
    let floor = cover.map_or(Path::new("/"), |c| c.destination.as_path());
    let host_tree = match cover.map(|c| &c.content) {
        Some(Content::Bind { source, .. }) => Some(&source.path),
        Some(Content::Proc { .. } | Content::Dev) => {
            entry.make_target = matches!(entry.content, Content::Directory { .. } | Content::Symlink { .. });
            return Ok(());
        }
        Some(Content::Symlink { .. }) => {
            return Err(MountError::BelowLink {
                path: destination.clone(),
                link: floor.to_owned(),
                origin: entry.origin.clone(),
            });
        }
        Some(Content::File { .. } | Content::Mask { .. }) => {
            return Err(MountError::BelowFile {
                path: destination.clone(),
                file: floor.to_owned(),
                origin: entry.origin.clone(),
            });
        }
        Some(_) => None,
        None => match &plan.root {
            RootPlan::Directory { source, access } if *access != RootAccess::Overlay => Some(&source.path),
            _ => None,
        },
    };
    if let Some(tree) = host_tree {
        // Nothing may be made on the host for a sandbox to come into being.
        let on_host = join(tree, floor, destination);
        return match files.lstat(&on_host) {
            Ok(_) if !matches!(entry.content, Content::Symlink { .. } | Content::Directory { .. }) => {
                entry.make_target = false;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(_) => Err(MountError::NoMountPoint {
                path: destination.clone(),
                inside: floor.to_owned(),
                on_host,
                origin: entry.origin.clone(),
            }),
        };
    }
    let known = |path: &Path| {
        plan.entries
            .iter()
            .any(|e| e.destination == path || e.make_parents.iter().any(|p| p == path))
    };
    let mut parents: Vec<PathBuf> = destination
        .ancestors()
        .skip(1)
        .take_while(|a| a.starts_with(floor) && *a != floor)
        .filter(|a| !known(a))
        .map(Path::to_path_buf)
        .collect();
    parents.reverse();
    entry.make_parents = parents;
    Ok(())
}
