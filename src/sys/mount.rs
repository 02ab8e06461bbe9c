#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, pids and ioctl numbers come from the kernel as wider registers"
)]
#![expect(
    unsafe_code,
    reason = "the mount API has no safe wrapper that does not allocate"
)]
//! The mount API by file descriptors (Linux 5.2, mount_setattr(2) 5.12): see the man pages of the same names.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Errno, check};

/// `MOUNT_ATTR_RDONLY`
pub(crate) const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub(crate) const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`
pub(crate) const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`
pub(crate) const NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR_IDMAP` (Linux 5.12)
pub(crate) const IDMAP: u64 = 0x0010_0000;

const OPEN_TREE_CLONE: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes every mount of this namespace private, so that nothing propagates in or out (mount_namespaces(7)).
///
/// # Errors
/// The errno of mount(2).
pub(crate) fn make_private() -> Result<(), Errno> {
    // SAFETY: the path is a literal with NUL; the other pointers may be null for a change of propagation.
    check(
        unsafe {
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            )
        }
        .into(),
    )
    .map(drop)
}

/// A detached copy of the tree at an open path: `open_tree(fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE)`.
///
/// # Errors
/// Its errno; EINVAL when the mount belongs to another namespace.
pub(crate) fn clone_tree(fd: RawFd, recursive: bool) -> Result<RawFd, Errno> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs() | libc::AT_EMPTY_PATH.unsigned_abs();
    if recursive {
        flags |= libc::AT_RECURSIVE.unsigned_abs();
    }
    // SAFETY: the path is the empty literal.
    check(unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) }).map(|fd| fd as RawFd)
}

/// mount_setattr(2) on the mount an fd is of. `private` also takes it out of its peer group; `idmap` is a user
/// namespace for `MOUNT_ATTR_IDMAP`.
///
/// # Errors
/// Its errno; EINVAL or EPERM when the file system cannot be idmapped.
pub(crate) fn set_attributes(
    fd: RawFd,
    set: u64,
    recursive: bool,
    private: bool,
    idmap: Option<RawFd>,
) -> Result<(), Errno> {
    let attr = MountAttr {
        set: set | if idmap.is_some() { IDMAP } else { 0 },
        clear: 0,
        propagation: if private { libc::MS_PRIVATE } else { 0 },
        userns_fd: idmap.map_or(0, |fd| u64::from(fd.unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is the empty literal; `attr` is the kernel's struct mount_attr with its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount on an open directory or file.
///
/// # Errors
/// The errno of move_mount(2).
pub(crate) fn attach(mount: RawFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: both paths are the empty literal.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount,
            c"".as_ptr(),
            target,
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// A new file system instance, detached: fsopen, fsconfig for each option, fsmount with `attributes`.
/// An option with an empty value is a flag.
///
/// # Errors
/// The errno of the call that failed.
pub(crate) fn new_filesystem(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> Result<RawFd, Errno> {
    // SAFETY: `kind` is NUL-terminated.
    let context = check(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })? as RawFd;
    let result = configure(context, options).and_then(|()| {
        // SAFETY: no pointers.
        check(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes) })
    });
    super::fd::close(context);
    result.map(|fd| fd as RawFd)
}

fn configure(context: RawFd, options: &[(&CStr, &CStr)]) -> Result<(), Errno> {
    for (key, value) in options {
        let (command, value) = if value.is_empty() {
            (FSCONFIG_SET_FLAG, std::ptr::null())
        } else {
            (FSCONFIG_SET_STRING, value.as_ptr())
        };
        // SAFETY: `key` and, for a string, `value` are NUL-terminated; a flag takes a null value.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key.as_ptr(), value, 0) })?;
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0) }).map(drop)
}

/// Makes the current directory the root and detaches the old one: `pivot_root(".", ".")` then a lazy unmount of
/// what is now below, as pivot_root(2) describes.
///
/// # Errors
/// The errno of the call that failed.
pub(crate) fn pivot_into_cwd() -> Result<(), Errno> {
    // SAFETY: literals with NUL.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        check(libc::chdir(c"/".as_ptr()).into()).map(drop)
    }
}
