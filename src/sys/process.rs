#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, pids and ioctl numbers come from the kernel as wider registers"
)]
#![expect(unsafe_code, reason = "clone, exec, wait and signals without allocation")]
//! Processes: clone3(2), a vfork that shares descriptors, exec, wait, signals, rlimits.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::{Errno, check};

/// `CLONE_NEWTIME`
pub(crate) const CLONE_NEWTIME: u64 = 0x80;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What [`fork`] returns in the parent.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its process id.
    pub pid: i32,
    /// A pidfd of it (close-on-exec).
    pub pidfd: OwnedFd,
}

/// A fork by clone3(2) with namespace flags: `None` in the child. Falls back to clone(2) where clone3 is ENOSYS
/// (containers) and no cgroup is asked for.
///
/// The child is a copy of a process that may have had threads: it must call nothing but system calls.
///
/// # Errors
/// The errno; EPERM or ENOSPC from namespace limits.
pub(crate) fn fork(namespaces: u64, into_cgroup: Option<RawFd>) -> Result<Option<Child>, Errno> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: namespaces
            | CLONE_PIDFD
            | if into_cgroup.is_some() {
                CLONE_INTO_CGROUP
            } else {
                0
            },
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: into_cgroup.map_or(0, |fd| u64::from(fd.unsigned_abs())),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM, so the child has its own copy of memory and may return from here; `args` is the
    // kernel's struct with its size, and `pidfd` outlives the call.
    let mut result =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) });
    if result == Err(Errno::ENOSYS) && into_cgroup.is_none() && namespaces & CLONE_NEWTIME == 0 {
        let flags = namespaces | CLONE_PIDFD | libc::SIGCHLD as u64;
        // SAFETY: as above; a null stack means the parent's copy; the third argument receives the pidfd.
        result = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) });
    }
    match result? {
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child {
                pid: pid as i32,
                pidfd,
            }))
        }
    }
}

/// A stack for [`spawn_sharing`], unmapped on drop.
#[derive(Debug)]
pub(crate) struct Stack {
    base: *mut libc::c_void,
}

// SAFETY: only the owner passes the address on, and only to the kernel.
unsafe impl Send for Stack {}
// SAFETY: nothing is read through a shared reference.
unsafe impl Sync for Stack {}

impl Stack {
    const SIZE: usize = 128 * 1024;

    /// Maps a stack; pages are touched only when used.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub(crate) fn new() -> Result<Stack, Errno> {
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(Stack { base })
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the only child that ran on it has exec'd or ended (CLONE_VFORK).
        unsafe { libc::munmap(self.base, Self::SIZE) };
    }
}

struct Entry<'a> {
    body: &'a mut dyn FnMut(),
}

extern "C" fn enter(entry: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn_sharing` passes a pointer to an `Entry` on its own frame, which is suspended (CLONE_VFORK)
    // for as long as this runs.
    let entry = unsafe { &mut *entry.cast::<Entry<'_>>() };
    (entry.body)();
    0
}

/// Starts a child that shares the descriptor table (and, unless `copy_memory`, the memory) and suspends the
/// caller until it execs or exits: how the seccomp listener gets from the command to init. `body` must end in
/// exec; when it returns the child exits.
///
/// # Errors
/// The errno of clone(2).
pub(crate) fn spawn_sharing(stack: &Stack, copy_memory: bool, body: &mut dyn FnMut()) -> Result<i32, Errno> {
    let mut flags = libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    if !copy_memory {
        flags |= libc::CLONE_VM;
    }
    let mut entry = Entry { body };
    // SAFETY: the stack is ours, large enough for the launch steps and used by nobody else; `entry` outlives the
    // child's use of it because CLONE_VFORK suspends us until exec or exit.
    check(
        unsafe {
            libc::clone(
                enter,
                stack.base.byte_add(Stack::SIZE),
                flags,
                (&raw mut entry).cast(),
            )
        }
        .into(),
    )
    .map(|pid| pid as i32)
}

/// NULL-terminated pointers for exec, built before the clone.
#[derive(Debug)]
pub(crate) struct CStringArray {
    _strings: Vec<std::ffi::CString>,
    pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers point into `_strings`, which never change.
unsafe impl Send for CStringArray {}
// SAFETY: as above.
unsafe impl Sync for CStringArray {}

impl CStringArray {
    /// Takes the strings over.
    #[must_use]
    pub(crate) fn new(strings: Vec<std::ffi::CString>) -> CStringArray {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        CStringArray {
            _strings: strings,
            pointers,
        }
    }
}

/// execve(2); returns only on failure. `cookie` goes into the fourth argument register, which execve does not
/// use and a filter can test.
#[must_use]
pub(crate) fn execve(path: &std::ffi::CStr, argv: &CStringArray, envp: &CStringArray, cookie: u64) -> Errno {
    // SAFETY: `path` is NUL-terminated; both arrays are NULL-terminated arrays of such strings.
    unsafe {
        libc::syscall(
            libc::SYS_execve,
            path.as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
            cookie,
        )
    };
    Errno::last()
}

/// `_exit(2)`: no handlers run.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// What a child used, from getrusage(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rusage {
    /// User time, microseconds.
    pub user_us: u64,
    /// System time, microseconds.
    pub system_us: u64,
    /// Largest resident set of any one process, bytes.
    pub max_rss_bytes: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Voluntary and involuntary context switches.
    pub context_switches: u64,
}

/// wait4(2) with `__WALL`, so that a traced or cloned child cannot make the wait hang. `None`: nothing to reap
/// under `WNOHANG`.
///
/// # Errors
/// The errno; ECHILD when there is no child.
pub(crate) fn wait(pid: i32, options: i32) -> Result<Option<(i32, i32, Rusage)>, Errno> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both out-pointers are live; all-zero is a valid rusage.
        let result = check(
            unsafe { libc::wait4(pid, &raw mut status, options | libc::__WALL, usage.as_mut_ptr()) }.into(),
        );
        match result {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            Ok(pid) => {
                // SAFETY: zeroed before and filled by the kernel.
                let usage = unsafe { usage.assume_init() };
                return Ok(Some((pid as i32, status, Rusage::from(usage))));
            }
        }
    }
}

impl From<libc::rusage> for Rusage {
    fn from(usage: libc::rusage) -> Rusage {
        let micros = |t: libc::timeval| t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_usec.unsigned_abs();
        Rusage {
            user_us: micros(usage.ru_utime),
            system_us: micros(usage.ru_stime),
            max_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
            major_faults: usage.ru_majflt.unsigned_abs(),
            context_switches: usage.ru_nvcsw.unsigned_abs() + usage.ru_nivcsw.unsigned_abs(),
        }
    }
}

/// Every signal to its default action and none blocked: what the caller ignored or blocked does not reach the
/// command (signal(7): both survive exec).
///
/// # Errors
/// The errno of rt_sigprocmask(2).
pub(crate) fn reset_signals() -> Result<(), Errno> {
    // SAFETY: all-zero is SIG_DFL with an empty mask; signals that cannot be set answer EINVAL, which is right
    // for SIGKILL and SIGSTOP; the mask is emptied from a zeroed set.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        let empty: libc::sigset_t = std::mem::zeroed();
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Blocks SIGCHLD and gives a descriptor that reads it (signalfd(2)).
///
/// # Errors
/// The errno of the call that failed.
pub(crate) fn child_signal_fd() -> Result<RawFd, Errno> {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
            .map(|fd| fd as RawFd)
    }
}

/// Waits until one of two descriptors is readable or hung up; says for each.
///
/// # Errors
/// The errno of poll(2).
pub(crate) fn poll_two(first: RawFd, second: RawFd) -> Result<(bool, bool), Errno> {
    let mut fds = [
        libc::pollfd {
            fd: first,
            events: libc::POLLIN,
            revents: 0,
        },
        libc::pollfd {
            fd: second,
            events: libc::POLLIN,
            revents: 0,
        },
    ];
    loop {
        // SAFETY: pointer and count are of one live array.
        match check(unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) }.into()) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok((fds[0].revents != 0, fds[1].revents != 0)),
        }
    }
}

/// kill(2).
///
/// # Errors
/// Its errno.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// pidfd_send_signal(2) (Linux 5.1).
///
/// # Errors
/// Its errno; ESRCH when it has ended.
pub(crate) fn pidfd_kill(pidfd: RawFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo is what kill(2) would send.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// setsid(2).
///
/// # Errors
/// Its errno.
pub(crate) fn setsid() -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// umask(2).
pub(crate) fn umask(mask: u32) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask) };
}

/// sethostname(2).
///
/// # Errors
/// Its errno.
pub(crate) fn set_hostname(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of one live slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// unshare(2).
///
/// # Errors
/// Its errno.
pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// setrlimit(2), soft and hard alike.
///
/// # Errors
/// Its errno; EPERM above the hard limit.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` lives through the call.
    check(unsafe { libc::setrlimit(resource as _, &raw const limit) }.into()).map(drop)
}

/// Nanoseconds on the clock that does not jump.
#[must_use]
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` lives through the call; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
