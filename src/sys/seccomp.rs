#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, pids and ioctl numbers come from the kernel as wider registers"
)]
#![expect(unsafe_code, reason = "seccomp(2) and its notification ioctls")]
//! seccomp(2): installing a filter, and answering its notifications (seccomp_unotify(2)).

use std::os::fd::RawFd;

use super::{Errno, check};

/// Installs a filter (needs no_new_privs); gives the listener, or 0 without `NEW_LISTENER` in `flags`.
///
/// # Errors
/// Its errno; EBUSY when there already is a listener, EINVAL for an unknown flag.
pub(crate) fn install(program: &[libc::sock_filter], flags: u64) -> Result<RawFd, Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points at `length` live instructions, which the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
    .map(|fd| fd as RawFd)
}

/// One system call that waits for an answer. All of it was written by the kernel; what the arguments point at was
/// written by the command and may change at any time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Notification {
    /// Cookie of this wait.
    pub id: u64,
    /// Thread id in our pid namespace.
    pub pid: u32,
    flags: u32,
    /// Number.
    pub nr: i32,
    /// `AUDIT_ARCH_*`
    pub arch: u32,
    /// Instruction pointer.
    pub instruction_pointer: u64,
    /// Argument registers.
    pub args: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}

const RECV: u64 = request(3, 0, size_of::<Notification>());
const SEND: u64 = request(3, 1, size_of::<Response>());
const ID_VALID: u64 = request(1, 2, size_of::<u64>());
const SET_FLAGS: u64 = request(1, 4, size_of::<u64>());
const SYNC_WAKE_UP: u64 = 1;

/// `SECCOMP_IOCTL_NOTIF_RECV`; blocks unless the descriptor polls readable.
///
/// # Errors
/// ENOENT when the process was killed meanwhile; EINTR.
pub(crate) fn receive(listener: RawFd) -> Result<Notification, Errno> {
    // The kernel wants it zeroed. It fills at most its own size, which since Linux 5.0 is this struct's.
    let mut notification = Notification::default();
    // SAFETY: the request's size is that of the struct it fills.
    check(unsafe { libc::ioctl(listener, RECV as _, &raw mut notification) }.into())?;
    Ok(notification)
}

/// `SECCOMP_IOCTL_NOTIF_SEND`: the call fails with this errno. There is no way in this crate to let one continue.
///
/// # Errors
/// ENOENT when the process was killed or interrupted meanwhile.
pub(crate) fn respond_errno(listener: RawFd, id: u64, errno: i32) -> Result<(), Errno> {
    let response = Response {
        id,
        val: 0,
        error: -errno,
        flags: 0,
    };
    // SAFETY: the request's size is that of the struct it reads.
    check(unsafe { libc::ioctl(listener, SEND as _, &raw const response) }.into()).map(drop)
}

/// `SECCOMP_IOCTL_NOTIF_ID_VALID`: the process that waits is still the same.
#[must_use]
pub(crate) fn id_valid(listener: RawFd, id: u64) -> bool {
    // SAFETY: the request reads one u64.
    check(unsafe { libc::ioctl(listener, ID_VALID as _, &raw const id) }.into()).is_ok()
}

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): a fifth of the time for each denial.
///
/// # Errors
/// EINVAL on older kernels.
pub(crate) fn set_sync_wake_up(listener: RawFd) -> Result<(), Errno> {
    // SAFETY: the flags are passed by value.
    check(unsafe { libc::ioctl(listener, SET_FLAGS as _, SYNC_WAKE_UP) }.into()).map(drop)
}

/// Reads memory of another process (process_vm_readv(2)), as much as is there.
///
/// # Errors
/// Its errno.
pub(crate) fn read_memory(pid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0)),
        iov_len: buffer.len(),
    };
    // SAFETY: `local` is one live, writable slice; the remote address is checked by the kernel.
    check(
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) } as libc::c_long,
    )
    .map(|n| usize::try_from(n).unwrap_or(0))
}
