//! Which host file a path of the profile means, and whether somebody could have bent it.
//!
//! A command may leave a symbolic link behind where the next run binds a directory (flatpak CVE-2024-42472,
//! judge0 CVE-2024-28185). So links are followed only where nobody but root could have made them; the file found
//! is remembered by device and inode and compared when it is opened.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::host::{FileFacts, FileKind, Files};
use crate::profile::model::Origin;
use crate::sys::Errno;

/// A file of the host that is shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its path, without symbolic links.
    pub path: PathBuf,
    /// A directory.
    #[serde(skip)]
    pub directory: bool,
    /// A device, socket or fifo.
    #[serde(skip)]
    pub special: bool,
    /// `st_dev` when planned.
    #[serde(skip)]
    pub dev: u64,
    /// `st_ino` when planned.
    #[serde(skip)]
    pub ino: u64,
}

/// Why the mount table cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the message shows")]
pub enum MountError {
    /// The host has no such file.
    Missing { path: PathBuf, origin: Origin },
    /// lstat(2) or readlink(2) failed otherwise.
    Unreadable {
        path: PathBuf,
        errno: Errno,
        origin: Origin,
    },
    /// A symbolic link in a place where others than root can make one.
    UntrustedLink {
        path: PathBuf,
        link: PathBuf,
        target: PathBuf,
        origin: Origin,
    },
    /// Links lead in a circle.
    LinkLoop { path: PathBuf, origin: Origin },
    /// A directory is needed.
    NotADirectory { path: PathBuf, origin: Origin },
    /// A relative path.
    Relative { path: PathBuf, origin: Origin },
    /// An unknown variable.
    Variable {
        text: String,
        error: String,
        origin: Origin,
    },
    /// `/` is not a mount destination.
    CoversRoot { origin: Origin },
    /// More than 64 components.
    TooDeep { path: PathBuf, origin: Origin },
    /// A mount point would have to be made on the host.
    NoMountPoint {
        path: PathBuf,
        inside: PathBuf,
        on_host: PathBuf,
        origin: Origin,
    },
    /// A mount point below a link of the table.
    BelowLink {
        path: PathBuf,
        link: PathBuf,
        origin: Origin,
    },
    /// A mount point below a file.
    BelowFile {
        path: PathBuf,
        file: PathBuf,
        origin: Origin,
    },
    /// procfs shows the processes of a pid namespace.
    ProcWithoutPidNamespace { origin: Origin },
}

impl MountError {
    /// The profile line at fault.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        match self {
            MountError::Missing { origin, .. }
            | MountError::Unreadable { origin, .. }
            | MountError::UntrustedLink { origin, .. }
            | MountError::LinkLoop { origin, .. }
            | MountError::NotADirectory { origin, .. }
            | MountError::Relative { origin, .. }
            | MountError::Variable { origin, .. }
            | MountError::CoversRoot { origin }
            | MountError::TooDeep { origin, .. }
            | MountError::NoMountPoint { origin, .. }
            | MountError::BelowLink { origin, .. }
            | MountError::BelowFile { origin, .. }
            | MountError::ProcWithoutPidNamespace { origin } => origin,
        }
    }

    /// The next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            MountError::Missing { .. } => {
                "create it, correct the path, or add \"optional\": true to leave it out where it is missing"
                    .into()
            }
            MountError::Unreadable { .. } => {
                "the caller needs search permission on every directory above it".into()
            }
            MountError::UntrustedLink { target, .. } => format!(
                "name what you mean: {}; a link here could have been planted by an earlier run",
                target.display()
            ),
            MountError::LinkLoop { .. } => "correct the links, or name the real path".into(),
            MountError::NotADirectory { .. } => "name a directory".into(),
            MountError::Relative { .. } => "start it with / or with a variable such as ${CWD}".into(),
            MountError::Variable { .. } => return None,
            MountError::CoversRoot { .. } => "use \"root\": {\"path\": …} to choose what / is".into(),
            MountError::TooDeep { .. } => "use a shorter path".into(),
            MountError::NoMountPoint { on_host, .. } => {
                format!(
                    "create {} on the host, or mount an overlay instead of the bind above it",
                    on_host.display()
                )
            }
            MountError::BelowLink { .. } => "name the path that the link leads to".into(),
            MountError::BelowFile { .. } => "remove one of the two entries".into(),
            MountError::ProcWithoutPidNamespace { .. } => {
                "set namespaces.pid to true, or remove the proc mount".into()
            }
        })
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountError::Missing { path, .. } => {
                write!(f, "cannot show {}: no such file on the host", path.display())
            }
            MountError::Unreadable { path, errno, .. } => {
                write!(f, "cannot look at {}: {}", path.display(), errno.desc())
            }
            MountError::UntrustedLink { path, link, .. } if path == link => {
                write!(
                    f,
                    "cannot show {}: it is a symbolic link in a directory that others than root can change",
                    path.display()
                )
            }
            MountError::UntrustedLink { path, link, .. } => write!(
                f,
                "cannot show {}: {} is a symbolic link in a directory that others than root can change",
                path.display(),
                link.display()
            ),
            MountError::LinkLoop { path, .. } => {
                write!(f, "cannot show {}: too many symbolic links", path.display())
            }
            MountError::NotADirectory { path, .. } => {
                write!(f, "cannot use {}: it is not a directory", path.display())
            }
            MountError::Relative { path, .. } => {
                write!(f, "cannot mount {}: the path is not absolute", path.display())
            }
            MountError::Variable { text, error, .. } => write!(f, "cannot expand \"{text}\": {error}"),
            MountError::CoversRoot { .. } => write!(f, "cannot mount on /: it is made by the sandbox"),
            MountError::TooDeep { path, .. } => {
                write!(f, "cannot mount on {}: more than 64 components", path.display())
            }
            MountError::NoMountPoint {
                path,
                inside,
                on_host,
                ..
            } => write!(
                f,
                "cannot mount on {}: {} does not exist, and nothing is created on the host below the bind {}",
                path.display(),
                on_host.display(),
                inside.display()
            ),
            MountError::BelowLink { path, link, .. } => {
                write!(
                    f,
                    "cannot mount on {}: {} is a symbolic link inside",
                    path.display(),
                    link.display()
                )
            }
            MountError::BelowFile { path, file, .. } => {
                write!(
                    f,
                    "cannot mount on {}: {} is not a directory inside",
                    path.display(),
                    file.display()
                )
            }
            MountError::ProcWithoutPidNamespace { .. } => {
                write!(
                    f,
                    "cannot mount proc: it would show the host's processes, for there is no pid namespace"
                )
            }
        }
    }
}

impl std::error::Error for MountError {}

/// May anyone but root put a link into this directory?
fn only_root_writes(directory: &FileFacts) -> bool {
    const STICKY: u32 = 0o1000;
    directory.uid == 0
        && (directory.mode & 0o022 == 0 || directory.mode & STICKY != 0 && directory.mode & 0o002 == 0)
}

/// The text of a link that only root can have made.
pub(super) fn trusted_link(files: &dyn Files, path: &Path) -> Option<PathBuf> {
    let facts = files.lstat(path).ok()?;
    let parent = files.lstat(path.parent()?).ok()?;
    (facts.kind == FileKind::Symlink && only_root_writes(&parent))
        .then(|| files.readlink(path).ok())
        .flatten()
}

/// Walks a path, following links that only root can have made, and refusing others.
pub(super) fn resolve(files: &dyn Files, path: &Path, origin: &Origin) -> Result<Source, MountError> {
    let mut pending: Vec<PathBuf> = components(path);
    let mut resolved = PathBuf::from("/");
    let mut directory = lstat(files, &resolved, path, origin)?;
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name.as_os_str() == ".." {
            resolved.pop();
            directory = lstat(files, &resolved, path, origin)?;
            continue;
        }
        let next = resolved.join(&name);
        let facts = lstat(files, &next, path, origin)?;
        if facts.kind != FileKind::Symlink {
            resolved = next;
            directory = facts;
            continue;
        }
        links += 1;
        if links > 40 {
            return Err(MountError::LinkLoop {
                path: path.to_owned(),
                origin: origin.clone(),
            });
        }
        let target = files.readlink(&next).map_err(|errno| MountError::Unreadable {
            path: next.clone(),
            errno,
            origin: origin.clone(),
        })?;
        if !only_root_writes(&directory) {
            let target = super::normalise(&resolved.join(target));
            return Err(MountError::UntrustedLink {
                path: path.to_owned(),
                link: next,
                target,
                origin: origin.clone(),
            });
        }
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        directory = lstat(files, &resolved, path, origin)?;
        pending.extend(components(&target));
    }
    Ok(Source {
        path: resolved,
        directory: directory.kind == FileKind::Directory,
        special: directory.kind == FileKind::Special,
        dev: directory.dev,
        ino: directory.ino,
    })
}

/// Components last to first, to be popped.
fn components(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            _ => None,
        })
        .collect()
}

fn lstat(files: &dyn Files, path: &Path, whole: &Path, origin: &Origin) -> Result<FileFacts, MountError> {
    files.lstat(path).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR => MountError::Missing {
            path: whole.to_owned(),
            origin: origin.clone(),
        },
        errno => MountError::Unreadable {
            path: path.to_owned(),
            errno,
            origin: origin.clone(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A table of files: path → (kind, mode, uid, link target).
    struct Table(HashMap<&'static str, (FileKind, u32, u32, &'static str)>);

    impl Files for Table {
        fn lstat(&self, path: &Path) -> Result<FileFacts, Errno> {
            let (kind, mode, uid, _) = self.0.get(path.to_str().unwrap()).ok_or(Errno::ENOENT)?;
            Ok(FileFacts {
                kind: *kind,
                mode: *mode,
                uid: *uid,
                dev: 1,
                ino: 2,
            })
        }

        fn readlink(&self, path: &Path) -> Result<PathBuf, Errno> {
            self.0
                .get(path.to_str().unwrap())
                .map(|f| PathBuf::from(f.3))
                .ok_or(Errno::ENOENT)
        }
    }

    fn host() -> Table {
        use FileKind::{Directory, Symlink};
        Table(HashMap::from([
            ("/", (Directory, 0o755, 0, "")),
            ("/etc", (Directory, 0o755, 0, "")),
            ("/bin", (Symlink, 0o777, 0, "usr/bin")),
            ("/usr", (Directory, 0o755, 0, "")),
            ("/usr/bin", (Directory, 0o755, 0, "")),
            ("/home", (Directory, 0o755, 0, "")),
            ("/home/u", (Directory, 0o755, 1000, "")),
            ("/home/u/out", (Symlink, 0o777, 1000, "/etc")),
            ("/loop", (Symlink, 0o777, 0, "loop")),
            ("/tmp", (Directory, 0o1777, 0, "")),
            ("/tmp/l", (Symlink, 0o777, 5, "/etc")),
        ]))
    }

    fn origin() -> Origin {
        Origin {
            file: "p.json".into(),
            pointer: "/mounts/0".into(),
        }
    }

    #[test]
    fn a_link_that_only_root_can_make_is_followed() {
        assert_eq!(
            resolve(&host(), Path::new("/bin"), &origin()).unwrap().path,
            Path::new("/usr/bin")
        );
    }

    #[test]
    fn a_link_in_a_directory_of_the_caller_is_refused_with_the_path_it_means() {
        let error = resolve(&host(), Path::new("/home/u/out"), &origin()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot show /home/u/out: it is a symbolic link in a directory that others than root can change"
        );
        assert!(error.hint().unwrap().starts_with("name what you mean: /etc"));
    }

    #[test]
    fn a_link_in_a_world_writable_directory_is_refused_although_sticky() {
        assert!(matches!(
            resolve(&host(), Path::new("/tmp/l"), &origin()),
            Err(MountError::UntrustedLink { .. })
        ));
    }

    #[test]
    fn a_loop_of_links_ends() {
        assert!(matches!(
            resolve(&host(), Path::new("/loop"), &origin()),
            Err(MountError::LinkLoop { .. })
        ));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = resolve(&host(), Path::new("/usr/none"), &origin()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot show /usr/none: no such file on the host"
        );
    }
}
