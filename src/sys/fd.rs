#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, pids and ioctl numbers come from the kernel as wider registers"
)]
#![expect(unsafe_code, reason = "raw file descriptor calls")]
//! File descriptors: allocation-free read, write, open, close, message passing.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Errno, check};

/// `AT_FDCWD`
pub(crate) const CWD: RawFd = libc::AT_FDCWD;

/// close(2). The result says only what cannot be helped, so there is none.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: closing a number is memory-safe; callers own the descriptor (it is a raw number in the child).
    unsafe { libc::close(fd) };
}

/// dup3(2) onto `to`, without `O_CLOEXEC`; when both are the same the flag is cleared instead.
///
/// # Errors
/// The errno of dup3(2) or fcntl(2).
pub(crate) fn place(from: RawFd, to: RawFd) -> Result<(), Errno> {
    if from == to {
        // SAFETY: no pointers.
        return check(unsafe { libc::fcntl(from, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: no pointers; `to` is 0, 1 or 2, which nothing in this process owns as an object.
    check(unsafe { libc::dup3(from, to, 0) }.into()).map(drop)
}

/// close_range(2) (Linux 5.9); `flags` may be `CLOSE_RANGE_CLOEXEC` (Linux 5.11).
///
/// # Errors
/// The errno; ENOSYS on older kernels.
pub(crate) fn close_range(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: no pointers; the caller holds no owned descriptor in the range that it uses afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// write(2), all of it, retried on EINTR.
///
/// # Errors
/// The errno, or ENOSPC for a write of nothing.
pub(crate) fn write_all(fd: RawFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: pointer and length are of one live slice.
        match check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as libc::c_long) {
            Ok(0) => return Err(Errno::ENOSPC),
            Ok(n) => bytes = &bytes[usize::try_from(n).unwrap_or(bytes.len())..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// openat(2).
///
/// # Errors
/// Its errno.
pub(crate) fn openat(dir: RawFd, path: &CStr, flags: i32, mode: u32) -> Result<RawFd, Errno> {
    // SAFETY: `path` is NUL-terminated and lives through the call.
    check(unsafe { libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())
        .map(|fd| fd as RawFd)
}

/// openat2(2) (Linux 5.6) with `RESOLVE_*` flags.
///
/// # Errors
/// Its errno; ELOOP for a symbolic link under `RESOLVE_NO_SYMLINKS`.
pub(crate) fn openat2(dir: RawFd, path: &CStr, flags: i32, resolve: u64) -> Result<RawFd, Errno> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = OpenHow {
        flags: u64::from((flags | libc::O_CLOEXEC).unsigned_abs()),
        mode: 0,
        resolve,
    };
    // SAFETY: `path` is NUL-terminated; `how` is the kernel's struct open_how with its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir,
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    })
    .map(|fd| fd as RawFd)
}

/// What fstat(2) says of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `st_dev`
    pub dev: u64,
    /// `st_ino`
    pub ino: u64,
    /// `st_mode`
    pub mode: u32,
    /// `st_rdev`
    pub rdev: u64,
}

/// fstat(2).
///
/// # Errors
/// Its errno.
pub(crate) fn fstat(fd: RawFd) -> Result<Stat, Errno> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the whole struct when it returns 0, and only then is it read.
    let stat = unsafe {
        check(libc::fstat(fd, stat.as_mut_ptr()).into())?;
        stat.assume_init()
    };
    Ok(Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        rdev: stat.st_rdev,
    })
}

/// mkdirat(2).
///
/// # Errors
/// Its errno.
pub(crate) fn mkdirat(dir: RawFd, path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated.
    check(unsafe { libc::mkdirat(dir, path.as_ptr(), mode) }.into()).map(drop)
}

/// symlinkat(2).
///
/// # Errors
/// Its errno.
pub(crate) fn symlinkat(target: &CStr, dir: RawFd, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both are NUL-terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir, path.as_ptr()) }.into()).map(drop)
}

/// fchmod(2).
///
/// # Errors
/// Its errno.
pub(crate) fn fchmod(fd: RawFd, mode: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchmod(fd, mode) }.into()).map(drop)
}

/// chdir(2).
///
/// # Errors
/// Its errno.
pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated.
    check(unsafe { libc::chdir(path.as_ptr()) }.into()).map(drop)
}

/// fchdir(2).
///
/// # Errors
/// Its errno.
pub(crate) fn fchdir(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchdir(fd) }.into()).map(drop)
}

/// Most descriptors that one [`send`] passes.
pub(crate) const MAX_PASSED: usize = 4;

const CONTROL: usize = 64;

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Sends one message and up to [`MAX_PASSED`] descriptors over a unix socket (unix(7), `SCM_RIGHTS`).
///
/// # Errors
/// The errno of sendmsg(2); EPIPE when the peer is gone (no SIGPIPE is raised).
pub(crate) fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> Result<(), Errno> {
    let mut control = Control([0; CONTROL]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let fds = &fds[..fds.len().min(MAX_PASSED)];
    let payload = size_of_val(fds) as u32;
    // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE and CMSG_FIRSTHDR compute inside `control`, whose 64 aligned bytes hold a header and
        // MAX_PASSED descriptors; the copy stays inside what CMSG_LEN says.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(payload) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                payload as usize,
            );
        }
    }
    loop {
        // SAFETY: `message` points at live buffers of the stated lengths.
        match check(unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) } as libc::c_long)
        {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one message; descriptors that came with it are put into `fds` (close-on-exec), the rest stays -1.
///
/// # Errors
/// The errno of recvmsg(2); EAGAIN under `MSG_DONTWAIT`.
pub(crate) fn receive(
    socket: RawFd,
    bytes: &mut [u8],
    fds: &mut [RawFd; MAX_PASSED],
    flags: i32,
) -> Result<usize, Errno> {
    let mut control = Control([0; CONTROL]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL as _;
    *fds = [-1; MAX_PASSED];
    let received = loop {
        let flags = flags | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `message` points at live, writable buffers of the stated lengths.
        let result = unsafe { libc::recvmsg(socket, &raw mut message, flags) };
        match check(result as libc::c_long) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    // SAFETY: the kernel wrote a well-formed control message of at most `msg_controllen` bytes into `control`;
    // no more than MAX_PASSED descriptors are copied out of it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
        {
            let length = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let length = length.min(size_of::<[RawFd; MAX_PASSED]>());
            std::ptr::copy_nonoverlapping(libc::CMSG_DATA(header), fds.as_mut_ptr().cast::<u8>(), length);
        }
    }
    Ok(usize::try_from(received).unwrap_or(0))
}

/// ioctl(2) that takes an integer.
///
/// # Errors
/// Its errno.
pub(crate) fn ioctl_int(fd: RawFd, request: u64, argument: i64) -> Result<i32, Errno> {
    // SAFETY: only requests that take an integer by value are passed by this crate (TIOCSCTTY, TIOCGPTPEER).
    check(unsafe { libc::ioctl(fd, request, argument) }.into()).map(|value| value as i32)
}

/// `TIOCSPTLCK` with 0: unlocks the slave of a pty master.
///
/// # Errors
/// Its errno.
pub(crate) fn unlock_pty(master: RawFd) -> Result<(), Errno> {
    let zero: libc::c_int = 0;
    // SAFETY: the request reads one int, which lives through the call.
    check(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const zero) }.into()).map(drop)
}

/// Copies the window size of terminal `from` to terminal `to`.
///
/// # Errors
/// The errno of ioctl(2).
pub(crate) fn copy_window_size(from: RawFd, to: RawFd) -> Result<(), Errno> {
    let mut size = std::mem::MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the first call fills the struct (all-zero is valid before), the second reads it.
    unsafe {
        check(libc::ioctl(from, libc::TIOCGWINSZ, size.as_mut_ptr()).into())?;
        check(libc::ioctl(to, libc::TIOCSWINSZ, size.as_ptr()).into()).map(drop)
    }
}

/// Brings the loopback interface of the current network namespace up (netdevice(7)).
///
/// # Errors
/// The errno of socket(2) or ioctl(2).
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: no pointers.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?
            as RawFd;
    // SAFETY: all-zero is a valid ifreq; the name stays NUL-terminated, and the request reads only name and flags.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request).into())
    };
    close(socket);
    result.map(drop)
}

/// Takes charge of a descriptor that one of this module's calls has just returned.
#[must_use]
pub(crate) fn own(fd: RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    assert!(fd >= 0, "not a descriptor");
    // SAFETY: callers pass what a call of `crate::sys` has just returned, which nothing else owns yet.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

/// read(2), retried on EINTR.
///
/// # Errors
/// Its errno; EAGAIN where there is nothing.
pub(crate) fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: pointer and length are of one live, writable slice.
        match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as libc::c_long) {
            Err(Errno::EINTR) => {}
            other => return other.map(|n| usize::try_from(n).unwrap_or(0)),
        }
    }
}

/// pread(2).
///
/// # Errors
/// Its errno.
pub(crate) fn pread(fd: RawFd, buffer: &mut [u8], offset: i64) -> Result<usize, Errno> {
    // SAFETY: pointer and length are of one live, writable slice.
    check(unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), offset) } as libc::c_long)
        .map(|n| usize::try_from(n).unwrap_or(0))
}

/// A descriptor number as a borrowed one, for calls that want that.
#[must_use]
pub(crate) fn borrow<'a>(fd: RawFd) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: callers keep the descriptor open for as long as the borrow is used: each use is one call.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
