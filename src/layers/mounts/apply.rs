//! The mount table, done: system calls only, in the child that holds the new mount namespace.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};

use super::arm::{ArmedMounts, ArmedRoot, CloneFault, Op, clone_checked};
use crate::sys::{Errno, fd, mount};

/// More trees than this are refused when arming.
pub(crate) const MAX_TREES: usize = 16_384;

const NO_SYMLINKS_BENEATH: u64 = 0x04 | 0x08;

/// What failed, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Before any entry.
    Base(Errno),
    /// A tree of the host.
    Tree(u16, Errno),
    /// A tree of the host is another file now.
    TreeChanged(u16),
    /// An operation.
    Op(u16, Errno),
    /// pivot_root and after.
    Pivot(Errno),
}

fn short(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// Builds the tree and makes it the root. `trees` has a place for each tree's descriptor.
pub(crate) fn apply(armed: &ArmedMounts, trees: &mut [RawFd]) -> Result<(), Fault> {
    // First, so that nothing below shows on the host and no later host mount shows inside.
    mount::make_private().map_err(Fault::Base)?;
    // All host trees are taken before the new root covers any of their paths.
    for (index, tree) in armed.trees.iter().enumerate() {
        trees[index] = match &tree.ready {
            Some(ready) => ready.as_raw_fd(),
            None if tree.empty => {
                let options = [(c"size", c"4k"), (c"nr_inodes", c"2"), (c"mode", c"555")];
                mount::new_filesystem(c"tmpfs", &options, tree.attributes)
                    .map_err(|errno| Fault::Tree(short(index), errno))?
            }
            None => take(tree, short(index))?,
        };
    }
    let root = new_root(armed, trees)?;
    for (index, op) in armed.ops.iter().enumerate() {
        perform(op, root, trees).map_err(|errno| Fault::Op(short(index), errno))?;
    }
    // From here on there is no way back to the host's files.
    fd::fchdir(root).map_err(Fault::Pivot)?;
    mount::pivot_into_cwd().map_err(Fault::Pivot)?;
    if matches!(armed.root, ArmedRoot::Tmpfs) {
        // After the mount points are made: nothing can be added to the composed root.
        mount::set_attributes(root, mount::RDONLY, false, false, None).map_err(Fault::Pivot)?;
    }
    fd::close(root);
    for tree in trees.iter() {
        fd::close(*tree);
    }
    Ok(())
}

fn take(tree: &super::arm::Tree, index: u16) -> Result<RawFd, Fault> {
    let fault = |errno| Fault::Tree(index, errno);
    let detached = clone_checked(tree).map_err(|f| match f {
        CloneFault::Changed => Fault::TreeChanged(index),
        CloneFault::Call(_, errno) => fault(errno),
    })?;
    mount::set_attributes(detached, tree.attributes, tree.recursive, true, None).map_err(fault)?;
    Ok(detached)
}

/// Puts the new root on some directory of the old one (it vanishes with it) and opens it.
fn new_root(armed: &ArmedMounts, trees: &[RawFd]) -> Result<RawFd, Fault> {
    let base = mount::NOSUID | mount::NODEV;
    let tree = match &armed.root {
        ArmedRoot::Tmpfs => mount::new_filesystem(c"tmpfs", &[(c"mode", c"755"), (c"size", c"4m")], base)
            .map_err(Fault::Base)?,
        ArmedRoot::Tree(slot) => trees[*slot],
        ArmedRoot::Overlay { size, .. } => {
            mount::new_filesystem(c"tmpfs", &[(c"mode", c"755"), (c"size", size)], base)
                .map_err(Fault::Base)?
        }
    };
    let mut last = Errno::ENOENT;
    for place in [c"/tmp", c"/run", c"/usr", c"/etc", c"/dev"] {
        match fd::openat(
            fd::CWD,
            place,
            libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            0,
        ) {
            Ok(target) => {
                mount::attach(tree, target).map_err(Fault::Base)?;
                fd::close(target);
                let root =
                    fd::openat(fd::CWD, place, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(Fault::Base)?;
                if let ArmedRoot::Overlay { tree: lower, .. } = &armed.root {
                    return overlay_root(root, trees[*lower]).map_err(Fault::Base);
                }
                return Ok(root);
            }
            Err(errno) => last = errno,
        }
    }
    Err(Fault::Base(last))
}

/// Overlay over `lower` on top of the scratch tmpfs at `scratch`; gives the overlay's root.
fn overlay_root(scratch: RawFd, lower: RawFd) -> Result<RawFd, Errno> {
    fd::mkdirat(scratch, c"lower0", 0o755)?;
    let target = open_target(scratch, c"lower0")?;
    mount::attach(lower, target)?;
    fd::close(target);
    let overlay = overlay(scratch, c"lower0")?;
    mount::attach(overlay, scratch)?;
    // The descriptor of the detached mount is now that of the attached one.
    Ok(overlay)
}

/// Makes `upper` and `work` in a scratch tmpfs and an overlay mount of them over `lower` (names in the scratch).
fn overlay(scratch: RawFd, lower: &CStr) -> Result<RawFd, Errno> {
    fd::mkdirat(scratch, c"upper", 0o755)?;
    fd::mkdirat(scratch, c"work", 0o700)?;
    // Overlay takes paths; relative ones start at the working directory.
    fd::fchdir(scratch)?;
    mount::new_filesystem(
        c"overlay",
        &[
            (c"lowerdir", lower),
            (c"upperdir", c"upper"),
            (c"workdir", c"work"),
            // The only kind of attribute that an unprivileged overlay may write (Linux 5.11).
            (c"userxattr", c""),
        ],
        mount::NOSUID | mount::NODEV,
    )
}

/// Opens a mount point below the new root; a link anywhere on the way is an error.
fn open_target(root: RawFd, path: &CStr) -> Result<RawFd, Errno> {
    fd::openat2(root, path, libc::O_PATH | libc::O_NOFOLLOW, NO_SYMLINKS_BENEATH)
}

fn attach_at(root: RawFd, path: &CStr, tree: RawFd) -> Result<(), Errno> {
    let target = open_target(root, path)?;
    let result = mount::attach(tree, target);
    fd::close(target);
    result
}

const MAX_OPTIONS: usize = 4;

fn perform(op: &Op, root: RawFd, trees: &[RawFd]) -> Result<(), Errno> {
    match op {
        Op::MakeDirectory { path, mode } => match fd::mkdirat(root, path, *mode) {
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
            Ok(()) if mode & 0o7000 == 0 => Ok(()),
            // mkdir(2) ignores the sticky bit's siblings under some umasks; chmod says exactly what is wanted.
            Ok(()) => {
                let directory = fd::openat(
                    root,
                    path,
                    libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
                    0,
                )?;
                let result = fd::fchmod(directory, *mode);
                fd::close(directory);
                result
            }
        },
        Op::MakeFile { path, content, mode } => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
            let file = fd::openat(root, path, flags, *mode)?;
            let result = fd::write_all(file, content);
            fd::close(file);
            result
        }
        Op::MakeLink { path, to } => fd::symlinkat(to, root, path),
        Op::Attach { path, tree } => attach_at(root, path, trees[*tree]),
        Op::MaskFile { path, null } | Op::MaskDirectory { path, empty: null } => {
            // One tree covers many paths. A detached tree can be cloned from Linux 6.15 on; before, it is attached
            // once and cloned from there.
            match mount::clone_tree(trees[*null], false) {
                Ok(copy) => {
                    let result = attach_at(root, path, copy);
                    fd::close(copy);
                    result
                }
                Err(_) => attach_at(root, path, trees[*null]),
            }
        }
        Op::Mount {
            path,
            kind,
            options,
            attributes,
        } => {
            let mut list: [(&CStr, &CStr); MAX_OPTIONS] = [(c"", c""); MAX_OPTIONS];
            for (slot, (key, value)) in list.iter_mut().zip(options) {
                *slot = (key, value);
            }
            let tree = mount::new_filesystem(kind, &list[..options.len().min(MAX_OPTIONS)], *attributes)?;
            let result = attach_at(root, path, tree);
            fd::close(tree);
            result
        }
        Op::Overlay {
            path,
            scratch,
            lower,
            options,
        } => {
            let mut list: [(&CStr, &CStr); MAX_OPTIONS] = [(c"", c""); MAX_OPTIONS];
            for (slot, (key, value)) in list.iter_mut().zip(scratch) {
                *slot = (key, value);
            }
            let tmpfs = mount::new_filesystem(
                c"tmpfs",
                &list[..scratch.len().min(MAX_OPTIONS)],
                mount::NOSUID | mount::NODEV,
            )?;
            attach_at(root, path, tmpfs)?;
            for (name, tree) in lower {
                fd::mkdirat(tmpfs, name, 0o755)?;
                attach_at(tmpfs, name, trees[*tree])?;
            }
            let over = overlay(tmpfs, options)?;
            attach_at(root, path, over)?;
            fd::close(over);
            fd::close(tmpfs);
            Ok(())
        }
        Op::Seal { path } => {
            let target = open_target(root, path)?;
            let result = mount::set_attributes(target, mount::RDONLY, false, false, None);
            fd::close(target);
            result
        }
    }
}
