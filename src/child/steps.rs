//! The order of the restrictions on the command itself.

use std::os::fd::AsRawFd;

use super::{Armed, Fault, Stage};
use crate::layers::{landlock, rlimits};
use crate::sys::{Errno, fd, process, security};

/// Restricts the calling process and execs. Comes back only with what failed.
///
/// It runs in the command's own process, which shares init's memory and descriptor table until exec.
pub(super) fn steps(armed: &Armed, terminal: Option<i32>, attributes: Option<i32>) -> Fault {
    match restrict(armed, terminal, attributes) {
        Err(fault) => fault,
        Ok(()) => exec(armed),
    }
}

fn restrict(armed: &Armed, terminal: Option<i32>, attributes: Option<i32>) -> Result<(), Fault> {
    // A session of its own: the caller's terminal is then nobody's controlling terminal in here.
    process::setsid().map_err(Stage::Session.fault())?;
    stdio(armed, terminal).map_err(|(index, errno)| Fault {
        stage: Stage::Stdio,
        index,
        errno,
    })?;
    // While /proc of this namespace can still be written, and before no_new_privs, which bars some transitions.
    if let (Some((file, text)), Some(attributes)) = (&armed.label, attributes) {
        let write = || {
            let file = fd::openat(attributes, file, libc::O_WRONLY, 0)?;
            let result = fd::write_all(file, text);
            fd::close(file);
            result
        };
        write().map_err(Stage::Label.fault())?;
    }
    // Ids were changed by init before it made the first file; what is left of privilege goes here.
    armed.capabilities.apply().map_err(Stage::Capabilities.fault())?;
    // All our descriptors are close-on-exec; this is for those that a library opened without asking.
    match fd::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) {
        // Init closed what was inherited, so nothing is lost where the flag is unknown (before Linux 5.11).
        Ok(()) | Err(Errno::ENOSYS | Errno::EINVAL) => {}
        Err(errno) => return Err(Stage::Descriptors.fault()(errno)),
    }
    // After the mounts, which it would forbid, and which its rules must see.
    if let Some((ruleset, paths)) = &armed.landlock {
        landlock::add_paths(ruleset.as_raw_fd(), paths).map_err(Stage::LandlockRule.fault_at())?;
        // Landlock asks for no_new_privs, which is a layer of its own that may be off.
        security::no_new_privs().map_err(Stage::Landlock.fault())?;
        landlock::enter(ruleset).map_err(Stage::Landlock.fault())?;
    }
    // Late, so that a limit of few open files does not hinder us; before seccomp, which may deny setrlimit.
    rlimits::apply(&armed.rlimits).map_err(Stage::Rlimit.fault_at())?;
    // So that whatever the caller blocked or ignored does not reach the command.
    process::reset_signals().map_err(Stage::Signals.fault())?;
    // Last: the filter need allow nothing of the above.
    if let Some((program, flags)) = &armed.seccomp {
        security::no_new_privs().map_err(Stage::Seccomp.fault())?;
        let listener = crate::sys::seccomp::install(program, *flags).map_err(Stage::Seccomp.fault())?;
        if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
            armed.board.set_listener(listener);
        }
    }
    Ok(())
}

fn stdio(armed: &Armed, terminal: Option<i32>) -> Result<(), (u16, Errno)> {
    for (index, target) in [0u16, 1, 2].into_iter().zip([0, 1, 2]) {
        let slot = usize::from(index);
        let source = if armed.terminal[slot] {
            terminal
        } else {
            armed.stdio[slot]
        };
        if let Some(source) = source {
            fd::place(source, target).map_err(|errno| (index, errno))?;
        }
    }
    if let Some(terminal) = terminal {
        fd::ioctl_int(terminal, libc::TIOCSCTTY, 0).map_err(|errno| (3, errno))?;
    }
    Ok(())
}

/// Tries the candidates as execvp(3) does: a missing file is passed over, one that may not be executed is
/// remembered, anything else ends the search.
fn exec(armed: &Armed) -> Fault {
    let mut worst = Fault {
        stage: Stage::Exec,
        index: 0,
        errno: Errno::ENOENT,
    };
    for (index, path) in armed.candidates.iter().enumerate() {
        let errno = process::execve(path, &armed.argv, &armed.envp, armed.exec_cookie);
        let fault = Fault {
            stage: Stage::Exec,
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno,
        };
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = fault,
            _ => return fault,
        }
    }
    worst
}
