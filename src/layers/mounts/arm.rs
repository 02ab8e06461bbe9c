//! From the plan to operations that need no allocation: C strings, and for a root caller the trees themselves.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Content, DEVICES, MountsPlan, RootPlan, Source};
use crate::profile::model::{Origin, RootAccess};
use crate::sys::{Errno, fd, mount};

/// One operation in the child. Paths are relative to the new root.
#[derive(Debug)]
pub(crate) enum Op {
    /// A directory; one that is there already is fine.
    MakeDirectory { path: CString, mode: u32 },
    /// A file with content; an empty one is a mount point.
    MakeFile {
        path: CString,
        content: Vec<u8>,
        mode: u32,
    },
    /// A symbolic link.
    MakeLink { path: CString, to: CString },
    /// Attach the tree in this slot.
    Attach { path: CString, tree: usize },
    /// A new file system.
    Mount {
        path: CString,
        kind: &'static CStr,
        options: Vec<(&'static CStr, CString)>,
        attributes: u64,
    },
    /// Overlay: `scratch` is a tmpfs put at `path` first, with `upper`, `work` and one directory a lower tree.
    Overlay {
        path: CString,
        scratch: Vec<(&'static CStr, CString)>,
        lower: Vec<(CString, usize)>,
        options: CString,
    },
    /// Cover a file by the null device of slot `null`.
    MaskFile { path: CString, null: usize },
    /// Cover a directory by the empty read-only tmpfs of slot `empty`.
    MaskDirectory { path: CString, empty: usize },
    /// No more writing on the mount at this path.
    Seal { path: CString },
}

/// A host tree that the child clones (ordinary user) or receives as a detached mount (root).
#[derive(Debug)]
pub(crate) struct Tree {
    /// Host path.
    pub(crate) path: CString,
    /// Device and inode it must still have.
    pub(crate) identity: Option<(u64, u64)>,
    /// `MOUNT_ATTR_*`
    pub(crate) attributes: u64,
    /// With everything mounted below.
    pub(crate) recursive: bool,
    /// Made ready by a root caller.
    pub(crate) ready: Option<OwnedFd>,
    /// Must be the character device 1:3.
    pub(crate) is_null: bool,
    /// No host tree at all but an empty tmpfs, made in the child.
    pub(crate) empty: bool,
}

/// The mount table, ready.
#[derive(Debug)]
pub(crate) struct ArmedMounts {
    pub(crate) trees: Vec<Tree>,
    /// What each tree is for, for messages.
    pub(crate) tree_names: Vec<(String, Option<Origin>)>,
    pub(crate) root: ArmedRoot,
    pub(crate) ops: Vec<Op>,
    /// What each operation is for, for messages.
    pub(crate) op_names: Vec<(String, Option<Origin>)>,
    /// A devpts of the sandbox's own is there.
    pub(crate) own_pts: bool,
}

/// What `/` becomes.
#[derive(Debug)]
pub(crate) enum ArmedRoot {
    /// A tmpfs, sealed at the end.
    Tmpfs,
    /// The tree in this slot.
    Tree(usize),
    /// An overlay over the tree in this slot.
    Overlay { tree: usize, size: CString },
}

/// What could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ArmError {
    /// A NUL byte in a path.
    Nul { path: String },
    /// The file is another one than when it was planned.
    Changed { path: String },
    /// A call on a source failed.
    Source {
        path: String,
        call: &'static str,
        errno: Errno,
    },
    /// The file system of a writable bind cannot be idmapped.
    Idmap { path: String, errno: Errno },
    /// The user namespace for idmapped mounts could not be made.
    IdmapNamespace { errno: Errno },
}

impl std::fmt::Display for ArmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ArmError::Nul { path } => write!(f, "cannot use the path {path:?}: it holds a NUL byte"),
            ArmError::Changed { path } => write!(
                f,
                "{path} was replaced by another file while the sandbox was being built"
            ),
            ArmError::Source { path, call, errno } => {
                write!(f, "cannot show {path}: {call}: {}", errno.desc())
            }
            ArmError::Idmap { path, errno } => write!(
                f,
                "cannot show {path} as the command's own: its file system does not take an id-mapped mount: {}",
                errno.desc()
            ),
            ArmError::IdmapNamespace { errno } => {
                write!(
                    f,
                    "cannot make the user namespace for id-mapped mounts: {}",
                    errno.desc()
                )
            }
        }
    }
}

impl std::error::Error for ArmError {}

impl ArmError {
    /// The next step.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            ArmError::Nul { .. } => "remove it".into(),
            ArmError::Changed { .. } => "somebody is changing it; run again when they are done".into(),
            ArmError::Source { .. } => "see `sandbox doctor` for what this kernel allows".into(),
            ArmError::Idmap { .. } => "run as the user who owns the directory instead of as root, or keep it on a file \
                 system and kernel with id-mapped mounts (ext4, xfs, btrfs from Linux 5.12 on, tmpfs from 6.3 on)"
                .into(),
            ArmError::IdmapNamespace { .. } => "raise /proc/sys/user/max_user_namespaces".into(),
        })
    }
}

/// C string of a path without its leading slash, as seen from a descriptor of the new root.
fn relative(path: &Path) -> Result<CString, ArmError> {
    let bytes = path.as_os_str().as_bytes();
    c_string(bytes.strip_prefix(b"/").unwrap_or(bytes))
}

fn c_string(bytes: &[u8]) -> Result<CString, ArmError> {
    CString::new(bytes).map_err(|_| ArmError::Nul {
        path: String::from_utf8_lossy(bytes).into_owned(),
    })
}

fn number(key: &'static CStr, value: &str) -> Result<(&'static CStr, CString), ArmError> {
    Ok((key, c_string(value.as_bytes())?))
}

fn tmpfs(size: u64, inodes: u64, mode: u32) -> Result<Vec<(&'static CStr, CString)>, ArmError> {
    Ok(vec![
        number(c"size", &size.to_string())?,
        number(c"nr_inodes", &inodes.to_string())?,
        number(c"mode", &format!("{mode:o}"))?,
    ])
}

struct Builder {
    armed: ArmedMounts,
    /// The slots that masks use, made when first needed.
    null: Option<usize>,
    empty: Option<usize>,
}

impl Builder {
    fn op(&mut self, op: Op, name: &Path, origin: Option<&Origin>) {
        self.armed.ops.push(op);
        self.armed
            .op_names
            .push((name.display().to_string(), origin.cloned()));
    }

    fn tree(&mut self, path: &Path, tree: Tree, origin: Option<&Origin>) -> usize {
        self.armed.trees.push(tree);
        self.armed
            .tree_names
            .push((path.display().to_string(), origin.cloned()));
        self.armed.trees.len() - 1
    }

    fn host_tree(
        &mut self,
        source: &Source,
        attributes: u64,
        origin: Option<&Origin>,
    ) -> Result<usize, ArmError> {
        let tree = Tree {
            path: c_string(source.path.as_os_str().as_bytes())?,
            identity: Some((source.dev, source.ino)),
            attributes,
            recursive: true,
            ready: None,
            is_null: false,
            empty: false,
        };
        Ok(self.tree(&source.path, tree, origin))
    }

    fn device(&mut self, name: &str) -> Result<usize, ArmError> {
        let path = Path::new("/dev").join(name);
        let tree = Tree {
            path: c_string(path.as_os_str().as_bytes())?,
            identity: None,
            attributes: mount::NOSUID | mount::NOEXEC,
            recursive: false,
            ready: None,
            is_null: name == "null",
            empty: false,
        };
        Ok(self.tree(&path, tree, None))
    }

    fn null(&mut self) -> Result<usize, ArmError> {
        if let Some(slot) = self.null {
            return Ok(slot);
        }
        let slot = self.device("null")?;
        self.null = Some(slot);
        Ok(slot)
    }

    fn empty(&mut self) -> usize {
        if let Some(slot) = self.empty {
            return slot;
        }
        let tree = Tree {
            path: CString::default(),
            identity: None,
            attributes: mount::NOSUID | mount::NODEV | mount::NOEXEC | mount::RDONLY,
            recursive: false,
            ready: None,
            is_null: false,
            empty: true,
        };
        let slot = self.tree(Path::new("the empty directory of masks"), tree, None);
        self.empty = Some(slot);
        slot
    }
}

/// Prepares the table. Detached trees (`ready`) are given by [`prepare_as_root`].
pub(crate) fn arm(plan: &MountsPlan) -> Result<ArmedMounts, ArmError> {
    let mut b = Builder {
        armed: ArmedMounts {
            trees: Vec::new(),
            tree_names: Vec::new(),
            root: ArmedRoot::Tmpfs,
            ops: Vec::new(),
            op_names: Vec::new(),
            own_pts: false,
        },
        null: None,
        empty: None,
    };
    if let RootPlan::Directory { source, access } = &plan.root {
        let base = mount::NOSUID | mount::NODEV;
        b.armed.root = match access {
            RootAccess::ReadOnly => ArmedRoot::Tree(b.host_tree(source, base | mount::RDONLY, None)?),
            RootAccess::ReadWrite => ArmedRoot::Tree(b.host_tree(source, base, None)?),
            RootAccess::Overlay => ArmedRoot::Overlay {
                tree: b.host_tree(source, base | mount::RDONLY, None)?,
                size: c_string(b"67108864")?,
            },
        };
    }
    for entry in &plan.entries {
        let origin = Some(&entry.origin);
        for parent in &entry.make_parents {
            b.op(
                Op::MakeDirectory {
                    path: relative(parent)?,
                    mode: 0o755,
                },
                parent,
                origin,
            );
        }
        let path = relative(&entry.destination)?;
        let name = entry.destination.as_path();
        let directory_point = match &entry.content {
            Content::Bind { source, .. } => Some(source.directory),
            Content::Mask { directory } => Some(*directory),
            Content::Symlink { .. } | Content::File { .. } | Content::Directory { .. } => None,
            _ => Some(true),
        };
        if entry.make_target {
            match directory_point {
                Some(true) => b.op(
                    Op::MakeDirectory {
                        path: path.clone(),
                        mode: 0o755,
                    },
                    name,
                    origin,
                ),
                Some(false) => {
                    b.op(
                        Op::MakeFile {
                            path: path.clone(),
                            content: Vec::new(),
                            mode: 0o444,
                        },
                        name,
                        origin,
                    );
                }
                None => {}
            }
        }
        content(&mut b, &entry.content, name, path, origin)?;
    }
    Ok(b.armed)
}

fn content(
    b: &mut Builder,
    content: &Content,
    name: &Path,
    path: CString,
    origin: Option<&Origin>,
) -> Result<(), ArmError> {
    let base = mount::NOSUID | mount::NODEV;
    match content {
        Content::Bind {
            source,
            writable,
            executable,
            ..
        } => {
            // A device that the profile names is meant to be used as one.
            let mut attributes = if source.special {
                mount::NOSUID | mount::NOEXEC
            } else {
                base
            };
            attributes |= if *writable || source.special {
                0
            } else {
                mount::RDONLY
            };
            attributes |= if *executable { 0 } else { mount::NOEXEC };
            let tree = b.host_tree(source, attributes, origin)?;
            b.op(Op::Attach { path, tree }, name, origin);
        }
        Content::Tmpfs {
            size_bytes,
            inodes,
            mode,
            executable,
        } => {
            let attributes = base | if *executable { 0 } else { mount::NOEXEC };
            let options = tmpfs(*size_bytes, *inodes, *mode)?;
            b.op(
                Op::Mount {
                    path,
                    kind: c"tmpfs",
                    options,
                    attributes,
                },
                name,
                origin,
            );
        }
        Content::Proc { pid_only, masks } => {
            let mut options = vec![];
            if *pid_only {
                options.push((c"subset", c_string(b"pid")?));
            }
            let attributes = base | mount::NOEXEC | mount::RDONLY;
            b.op(
                Op::Mount {
                    path,
                    kind: c"proc",
                    options,
                    attributes,
                },
                name,
                origin,
            );
            for mask in masks {
                let masked = name.join(mask.name);
                let path = relative(&masked)?;
                let op = if mask.directory {
                    Op::MaskDirectory {
                        path,
                        empty: b.empty(),
                    }
                } else {
                    Op::MaskFile {
                        path,
                        null: b.null()?,
                    }
                };
                b.op(op, &masked, origin);
            }
        }
        Content::Dev => device_tree(b, name, path, origin)?,
        Content::Mqueue => {
            b.op(
                Op::Mount {
                    path,
                    kind: c"mqueue",
                    options: vec![],
                    attributes: base | mount::NOEXEC,
                },
                name,
                origin,
            );
        }
        Content::Symlink { to } => {
            b.op(
                Op::MakeLink {
                    path,
                    to: c_string(to.as_os_str().as_bytes())?,
                },
                name,
                origin,
            );
        }
        Content::File { content, mode } => {
            b.op(
                Op::MakeFile {
                    path,
                    content: content.clone(),
                    mode: *mode,
                },
                name,
                origin,
            );
        }
        Content::Directory { mode } => b.op(Op::MakeDirectory { path, mode: *mode }, name, origin),
        Content::Overlay { lower, size_bytes } => {
            let mut slots = Vec::new();
            let mut list = Vec::new();
            for (index, source) in lower.iter().enumerate() {
                let tree = b.host_tree(source, base | mount::RDONLY, origin)?;
                let below = format!("lower{index}");
                list.push(below.clone());
                slots.push((c_string(below.as_bytes())?, tree));
            }
            let scratch = tmpfs(*size_bytes, (size_bytes / 4096).max(64), 0o755)?;
            let options = c_string(list.join(":").as_bytes())?;
            b.op(
                Op::Overlay {
                    path,
                    scratch,
                    lower: slots,
                    options,
                },
                name,
                origin,
            );
        }
        Content::Mask { directory: true } => {
            let empty = b.empty();
            b.op(Op::MaskDirectory { path, empty }, name, origin);
        }
        Content::Mask { directory: false } => {
            let null = b.null()?;
            b.op(Op::MaskFile { path, null }, name, origin);
        }
    }
    Ok(())
}

/// `/dev`: a small tmpfs with the harmless nodes, devpts of its own, shm, the usual links; then sealed.
fn device_tree(b: &mut Builder, name: &Path, path: CString, origin: Option<&Origin>) -> Result<(), ArmError> {
    let base = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let options = tmpfs(1 << 20, 64, 0o755)?;
    let whole = path.clone();
    b.op(
        Op::Mount {
            path,
            kind: c"tmpfs",
            options,
            attributes: base & !mount::NODEV,
        },
        name,
        origin,
    );
    for device in DEVICES {
        let inside = name.join(device);
        let point = relative(&inside)?;
        let tree = b.device(device)?;
        b.op(
            Op::MakeFile {
                path: point.clone(),
                content: Vec::new(),
                mode: 0o666,
            },
            &inside,
            origin,
        );
        b.op(Op::Attach { path: point, tree }, &inside, origin);
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (link, to) in links {
        let inside = name.join(link);
        b.op(
            Op::MakeLink {
                path: relative(&inside)?,
                to: c_string(to.as_bytes())?,
            },
            &inside,
            origin,
        );
    }
    let pts = name.join("pts");
    b.op(
        Op::MakeDirectory {
            path: relative(&pts)?,
            mode: 0o755,
        },
        &pts,
        origin,
    );
    let options = vec![
        (c"newinstance", CString::default()),
        (c"ptmxmode", c_string(b"0666")?),
        (c"mode", c_string(b"0620")?),
    ];
    let attributes = mount::NOSUID | mount::NOEXEC;
    b.op(
        Op::Mount {
            path: relative(&pts)?,
            kind: c"devpts",
            options,
            attributes,
        },
        &pts,
        origin,
    );
    let shm = name.join("shm");
    b.op(
        Op::MakeDirectory {
            path: relative(&shm)?,
            mode: 0o1777,
        },
        &shm,
        origin,
    );
    let options = tmpfs(64 << 20, 4096, 0o1777)?;
    b.op(
        Op::Mount {
            path: relative(&shm)?,
            kind: c"tmpfs",
            options,
            attributes: base,
        },
        &shm,
        origin,
    );
    b.op(Op::Seal { path: whole }, name, origin);
    b.armed.own_pts |= name == Path::new("/dev");
    Ok(())
}

/// For a root caller: takes the trees in the parent, where every directory can be reached, and maps the caller's
/// files to the command's ids on the trees that `owned` names.
pub(crate) fn prepare_as_root(
    armed: &mut ArmedMounts,
    plan: &MountsPlan,
    idmap: Option<&OwnedFd>,
) -> Result<(), ArmError> {
    let owned: Vec<&Path> = plan
        .entries
        .iter()
        .filter_map(|entry| match &entry.content {
            Content::Bind {
                source,
                caller_owned: true,
                ..
            } => Some(vec![source.path.as_path()]),
            Content::Overlay { lower, .. } => Some(lower.iter().map(|s| s.path.as_path()).collect()),
            _ => None,
        })
        .flatten()
        .chain(match &plan.root {
            RootPlan::Directory {
                source,
                access: RootAccess::ReadWrite | RootAccess::Overlay,
            } => Some(source.path.as_path()),
            _ => None,
        })
        .collect();
    for tree in armed.trees.iter_mut().filter(|tree| !tree.empty) {
        let name = tree.path.to_string_lossy().into_owned();
        let is_owned = owned
            .iter()
            .any(|path| path.as_os_str().as_bytes() == tree.path.as_bytes());
        let map = idmap.filter(|_| is_owned).map(AsRawFd::as_raw_fd);
        let detached = clone_checked(tree).map_err(|fault| match fault {
            CloneFault::Changed => ArmError::Changed { path: name.clone() },
            CloneFault::Call(call, errno) => ArmError::Source {
                path: name.clone(),
                call,
                errno,
            },
        })?;
        let detached = crate::sys::fd::own(detached);
        // A submount that cannot be mapped must not make the whole tree unusable, so the map goes to the top only.
        if let Some(map) = map {
            match mount::set_attributes(detached.as_raw_fd(), 0, false, false, Some(map)) {
                Ok(()) => {}
                // Read-only, it is shown as it is: the command may read less than the caller, never more.
                Err(_) if tree.attributes & mount::RDONLY != 0 => {}
                Err(errno) => return Err(ArmError::Idmap { path: name, errno }),
            }
        }
        mount::set_attributes(detached.as_raw_fd(), tree.attributes, tree.recursive, true, None).map_err(
            |errno| ArmError::Source {
                path: name.clone(),
                call: "mount_setattr",
                errno,
            },
        )?;
        tree.ready = Some(detached);
    }
    Ok(())
}

/// Why a tree could not be cloned.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CloneFault {
    /// Another file is there now.
    Changed,
    /// A call failed.
    Call(&'static str, Errno),
}

/// Opens a tree's source without following any link, makes sure that it is the planned one, and clones it.
/// Allocation-free: the child calls it too.
pub(crate) fn clone_checked(tree: &Tree) -> Result<RawFd, CloneFault> {
    const NO_SYMLINKS: u64 = 0x04;
    // Not NO_XDEV: a source may lie on any file system. `O_PATH` opens nothing, so a fifo does not hang.
    let source = fd::openat2(fd::CWD, &tree.path, libc::O_PATH, NO_SYMLINKS)
        .map_err(|e| CloneFault::Call("openat2", e))?;
    let result = fd::fstat(source)
        .map_err(|e| CloneFault::Call("fstat", e))
        .and_then(|stat| {
            let same = tree
                .identity
                .is_none_or(|identity| identity == (stat.dev, stat.ino));
            let null = !tree.is_null
                || (stat.mode & libc::S_IFMT == libc::S_IFCHR && stat.rdev == libc::makedev(1, 3));
            if !same || !null {
                return Err(CloneFault::Changed);
            }
            mount::clone_tree(source, tree.recursive).map_err(|e| CloneFault::Call("open_tree", e))
        });
    fd::close(source);
    result
}
