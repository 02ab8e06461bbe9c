//! Init: pid 1 of the sandbox. It builds the room, starts the command in it, gives up its rights, reaps, forwards
//! signals and the status, and ends with the supervisor; as pid 1, its end is the end of everything inside.

#![expect(
    clippy::cast_possible_truncation,
    reason = "CLONE_NEWTIME fits unshare's flags"
)]

use std::os::fd::{AsRawFd, RawFd};

use super::{Armed, Fault, MESSAGE_BYTES, Message, Stage, close_others, steps};
use crate::layers::mounts::apply::{self, Fault as MountFault};
use crate::sys::{Errno, fd, mount, process, security};

/// Runs in the cloned process; never returns.
pub(crate) fn run(armed: &mut Armed) -> ! {
    match build(armed).and_then(|room| start(armed, &room)) {
        Ok((command, signals, children)) => tend(armed, command, signals, children),
        Err(fault) => {
            armed.board.set_fault(fault.raw());
            process::exit_now(125)
        }
    }
}

/// What [`build`] leaves for the command.
struct Room {
    /// Slave and master of the sandbox's own terminal.
    terminal: Option<(RawFd, Option<RawFd>)>,
    /// A procfs of our own, writable, attached nowhere: for the label.
    attributes: Option<RawFd>,
    /// `/proc/thread-self/children`, when orphans must be found without a pid namespace.
    children: Option<RawFd>,
}

/// The order of what happens to the room, each step with its reason.
fn build(armed: &mut Armed) -> Result<Room, Fault> {
    // Nothing of the caller's stays open in here, not even for a moment that could be traced.
    close_others(&armed.keep).map_err(Stage::Descriptors.fault())?;
    // Until our ids are mapped we are nobody, and until we are in the cgroup nothing of us is counted.
    wait_for_go(armed.channel.as_raw_fd()).map_err(Stage::Handshake.fault())?;
    for (index, file) in armed.cgroup_join.iter().enumerate() {
        fd::write_all(*file, b"0").map_err(|errno| Fault {
            stage: Stage::JoinCgroup,
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno,
        })?;
    }
    // After the join, so that our own group is the root that is seen inside.
    if armed.cgroup_namespace {
        process::unshare(libc::CLONE_NEWCGROUP).map_err(Stage::CgroupNamespace.fault())?;
    }
    // While our /proc entry is still our own: a change of ids gives it to root.
    if let Some(offsets) = &armed.time_offsets {
        time_namespace(offsets).map_err(Stage::TimeNamespace.fault())?;
    }
    process::reset_signals().map_err(Stage::Signals.fault())?;
    process::umask(0o022);
    if armed.keyring {
        match security::new_session_keyring() {
            // No keys in this kernel, or an outer filter hides them: nothing to inherit either way.
            Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => {}
            Err(errno) => return Err(Stage::Keyring.fault()(errno)),
        }
    }
    if let Some(name) = &armed.hostname {
        process::set_hostname(name.to_bytes()).map_err(Stage::Hostname.fault())?;
    }
    if armed.loopback {
        fd::loopback_up().map_err(Stage::Loopback.fault())?;
    }
    // Before the first file is made: a file system of this namespace holds mapped ids only.
    armed.capabilities.take_ids().map_err(Stage::Ids.fault())?;
    // After the ids, for a change of ids forgets it. Without a pid namespace the end of init would orphan the
    // rest, so there the closed channel is the sign.
    if armed.pid_namespace {
        security::die_with_parent().map_err(Stage::DieWithParent.fault())?;
    } else {
        security::subreaper().map_err(Stage::DieWithParent.fault())?;
    }
    let children = if armed.pid_namespace {
        None
    } else {
        let path = c"/proc/thread-self/children";
        Some(fd::openat(fd::CWD, path, libc::O_RDONLY, 0).map_err(Stage::DieWithParent.fault())?)
    };
    let attributes = if armed.label.is_some() {
        Some(mount::new_filesystem(c"proc", &[], 0).map_err(Stage::Label.fault())?)
    } else {
        None
    };
    if let Some(mounts) = &armed.mounts {
        apply::apply(mounts, &mut armed.trees).map_err(mount_fault)?;
    }
    fd::chdir(&armed.cwd).map_err(Stage::WorkingDirectory.fault())?;
    let terminal = if armed.terminal.contains(&true) {
        Some(open_terminal(armed)?)
    } else {
        None
    };
    Ok(Room {
        terminal,
        attributes,
        children,
    })
}

/// A time namespace for our children, its clocks set before anything enters it.
fn time_namespace(offsets: &[u8]) -> Result<(), Errno> {
    process::unshare(process::CLONE_NEWTIME as i32)?;
    let file = fd::openat(fd::CWD, c"/proc/self/timens_offsets", libc::O_WRONLY, 0)?;
    let result = fd::write_all(file, offsets);
    fd::close(file);
    result
}

fn mount_fault(fault: MountFault) -> Fault {
    let (stage, index, errno) = match fault {
        MountFault::Base(errno) => (Stage::MountBase, 0, errno),
        MountFault::Tree(index, errno) => (Stage::MountTree, index, errno),
        MountFault::TreeChanged(index) => (Stage::MountTreeChanged, index, Errno::ESTALE),
        MountFault::Op(index, errno) => (Stage::Mount, index, errno),
        MountFault::Pivot(errno) => (Stage::PivotRoot, 0, errno),
    };
    Fault { stage, index, errno }
}

fn wait_for_go(channel: RawFd) -> Result<(), Errno> {
    let mut byte = [0; 1];
    let mut fds = [-1; fd::MAX_PASSED];
    match fd::receive(channel, &mut byte, &mut fds, 0)? {
        // The supervisor is gone before we began.
        0 => process::exit_now(125),
        _ => Ok(()),
    }
}

/// A pty on the devpts inside, so that `tty` and job control work there and the caller's terminal is out of reach.
fn open_terminal(armed: &Armed) -> Result<(RawFd, Option<RawFd>), Fault> {
    if let Some(slave) = armed.host_terminal {
        return Ok((slave, None));
    }
    let open = || {
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let master = fd::openat(fd::CWD, c"/dev/pts/ptmx", flags, 0)?;
        fd::unlock_pty(master)?;
        // By the master, not by a path that could be another file. (CVE-2025-52565)
        let slave = fd::ioctl_int(master, libc::TIOCGPTPEER, i64::from(flags | libc::O_CLOEXEC))?;
        Ok((slave, Some(master)))
    };
    open().map_err(Stage::Terminal.fault())
}

/// Starts the command; comes back once it has exec'd.
fn start(armed: &Armed, room: &Room) -> Result<(i32, RawFd, Option<RawFd>), Fault> {
    let signals = process::child_signal_fd().map_err(Stage::Signals.fault())?;
    let slave = room.terminal.map(|(slave, _)| slave);
    let mut body = || {
        let fault = steps::steps(armed, slave, room.attributes);
        armed.board.set_fault(fault.raw());
        process::exit_now(if fault.stage == Stage::Exec { 127 } else { 125 });
    };
    let command = process::spawn_sharing(&armed.stack, armed.time_offsets.is_some(), &mut body)
        .map_err(Stage::Spawn.fault())?;
    if armed.board.fault().is_some() {
        process::exit_now(125);
    }
    announce(armed, room).map_err(Stage::Handshake.fault())?;
    // Only now: the command needed the rights to give them up in its own way.
    armed.capabilities.disarm().map_err(Stage::Disarm.fault())?;
    security::undumpable().map_err(Stage::Disarm.fault())?;
    security::no_new_privs().map_err(Stage::Disarm.fault())?;
    Ok((command, signals, room.children))
}

/// Tells the supervisor, and lets go of everything that is the command's: a pipe must not stay open because init
/// still holds its end.
fn announce(armed: &Armed, room: &Room) -> Result<(), Errno> {
    let listener = armed.board.listener();
    let master = room.terminal.and_then(|(_, master)| master);
    let mut fds = [-1; 2];
    let mut count = 0;
    for fd in [listener, master].into_iter().flatten() {
        fds[count] = fd;
        count += 1;
    }
    let message = Message::Started {
        listener: listener.is_some(),
        terminal: master.is_some(),
        at_ns: process::monotonic_ns(),
    };
    fd::send(armed.channel.as_raw_fd(), &message.encode(), &fds[..count])?;
    for fd in fds[..count].iter().chain(&[0, 1, 2]) {
        fd::close(*fd);
    }
    if let Some((slave, _)) = room.terminal {
        fd::close(slave);
    }
    for fd in armed.stdio.iter().flatten() {
        fd::close(*fd);
    }
    Ok(())
}

/// Reaps until the command ends; then reports and ends.
fn tend(armed: &Armed, command: i32, signals: RawFd, children: Option<RawFd>) -> ! {
    let channel = armed.channel.as_raw_fd();
    loop {
        while let Ok(Some((pid, status, usage))) = process::wait(-1, libc::WNOHANG) {
            if pid == command {
                let message = Message::Ended {
                    status,
                    at_ns: process::monotonic_ns(),
                    usage,
                };
                // Without a supervisor there is nobody to tell; we end either way.
                let code = if fd::send(channel, &message.encode(), &[]).is_ok() {
                    0
                } else {
                    125
                };
                end(children, code);
            }
        }
        match process::poll_two(channel, signals) {
            Ok((true, _)) => obey(channel, command, children),
            Ok((false, _)) => {}
            Err(_) => end(children, 125),
        }
        // What it says is found out by wait4; reading only makes it quiet again.
        let mut signal = [0; 128];
        while fd::read(signals, &mut signal).is_ok_and(|n| n > 0) {}
    }
}

/// A signal number from the supervisor, or its end.
fn obey(channel: RawFd, command: i32, children: Option<RawFd>) {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut fds = [-1; fd::MAX_PASSED];
    match fd::receive(channel, &mut bytes, &mut fds, libc::MSG_DONTWAIT) {
        Ok(0) => end(children, 125),
        // ESRCH cannot be: the command is our child and not yet reaped.
        Ok(_) => process::kill(command, i32::from(bytes[0])).unwrap_or(()),
        Err(Errno::EAGAIN) => {}
        Err(_) => end(children, 125),
    }
}

/// Ends init. With a pid namespace the kernel ends everything else; without one init has become the parent of
/// every orphan, and kills until there is none.
fn end(children: Option<RawFd>, code: i32) -> ! {
    if let Some(list) = children {
        let mut text = [0; 4096];
        loop {
            if let Ok(length) = fd::pread(list, &mut text, 0) {
                kill_listed(&text[..length]);
            }
            match process::wait(-1, 0) {
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    process::exit_now(code)
}

/// SIGKILL to each decimal number in a list separated by spaces; a number cut off at the end is left for the
/// next look.
fn kill_listed(text: &[u8]) {
    let mut pid = 0i32;
    for byte in text {
        if byte.is_ascii_digit() {
            pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
        } else {
            if pid > 1 {
                // ESRCH: it ended by itself, and waits to be reaped.
                process::kill(pid, libc::SIGKILL).unwrap_or(());
            }
            pid = 0;
        }
    }
}
