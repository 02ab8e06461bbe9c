//! What runs between clone and exec. No allocation, no panic path, no environment: everything was prepared in
//! [`crate::launch`]; what fails crosses as a [`Stage`], an index and an errno.

mod init;
mod steps;

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};

use crate::layers::capabilities::CapabilitiesPlan;
use crate::layers::mounts::arm::ArmedMounts;
use crate::layers::rlimits::Rlimit;
use crate::sys::board::{RawFault, SharedBoard};
use crate::sys::process::{CStringArray, Stack};
use crate::sys::{Errno, fd};

pub(crate) use init::run as run_init;

/// Where on the way to exec something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Descriptors,
    Handshake,
    JoinCgroup,
    CgroupNamespace,
    Signals,
    Keyring,
    Hostname,
    Loopback,
    Ids,
    DieWithParent,
    MountBase,
    MountTree,
    MountTreeChanged,
    Mount,
    PivotRoot,
    WorkingDirectory,
    Terminal,
    TimeNamespace,
    Spawn,
    Disarm,
    Stdio,
    Session,
    Label,
    Capabilities,
    LandlockRule,
    Landlock,
    Rlimit,
    Seccomp,
    Exec,
}

impl Stage {
    const ALL: [Stage; 29] = [
        Stage::Descriptors,
        Stage::Handshake,
        Stage::JoinCgroup,
        Stage::CgroupNamespace,
        Stage::Signals,
        Stage::Keyring,
        Stage::Hostname,
        Stage::Loopback,
        Stage::Ids,
        Stage::DieWithParent,
        Stage::MountBase,
        Stage::MountTree,
        Stage::MountTreeChanged,
        Stage::Mount,
        Stage::PivotRoot,
        Stage::WorkingDirectory,
        Stage::Terminal,
        Stage::TimeNamespace,
        Stage::Spawn,
        Stage::Disarm,
        Stage::Stdio,
        Stage::Session,
        Stage::Label,
        Stage::Capabilities,
        Stage::LandlockRule,
        Stage::Landlock,
        Stage::Rlimit,
        Stage::Seccomp,
        Stage::Exec,
    ];

    /// Back from the number on the board.
    #[must_use]
    pub(crate) fn from_number(number: u8) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| *stage as u8 == number)
    }

    /// For "cannot …".
    #[must_use]
    pub(crate) fn doing(self) -> &'static str {
        match self {
            Stage::Descriptors => "close inherited file descriptors",
            Stage::Handshake => "hear from the supervisor",
            Stage::JoinCgroup => "join the cgroup",
            Stage::CgroupNamespace => "make the cgroup namespace",
            Stage::Signals => "reset signals",
            Stage::Keyring => "make a session keyring",
            Stage::Hostname => "set the hostname",
            Stage::Loopback => "bring the loopback interface up",
            Stage::Ids => "change user and group ids",
            Stage::DieWithParent => "tie the sandbox to its supervisor",
            Stage::MountBase => "start the new root file system",
            Stage::MountTree => "show",
            Stage::MountTreeChanged => "show (it was replaced meanwhile)",
            Stage::Mount => "mount",
            Stage::PivotRoot => "change the root file system",
            Stage::WorkingDirectory => "enter the working directory",
            Stage::Terminal => "make the sandbox's own terminal",
            Stage::TimeNamespace => "make the time namespace",
            Stage::Spawn => "start the command's process",
            Stage::Disarm => "drop init's capabilities",
            Stage::Stdio => "set up the standard streams",
            Stage::Session => "start a session",
            Stage::Label => "set the security label for the command",
            Stage::Capabilities => "drop capabilities",
            Stage::LandlockRule => "add the Landlock rule for",
            Stage::Landlock => "enter the Landlock domain",
            Stage::Rlimit => "set the limit",
            Stage::Seccomp => "install the seccomp filter",
            Stage::Exec => "execute",
        }
    }
}

/// Everything the child needs, made by the parent.
#[derive(Debug)]
pub(crate) struct Armed {
    /// Our end of the channel to the supervisor.
    pub(crate) channel: OwnedFd,
    /// Where faults go.
    pub(crate) board: SharedBoard,
    /// Descriptors that stay open in init until it has used them, ascending; all others are closed.
    pub(crate) keep: Vec<RawFd>,
    /// v1 `tasks` files to write `0` to.
    pub(crate) cgroup_join: Vec<RawFd>,
    /// unshare(CLONE_NEWCGROUP) after that.
    pub(crate) cgroup_namespace: bool,
    /// In a uts namespace of its own.
    pub(crate) hostname: Option<CString>,
    /// In a network namespace of its own.
    pub(crate) loopback: bool,
    /// Init is pid 1 of a pid namespace, whose end ends everything in it.
    pub(crate) pid_namespace: bool,
    /// Time namespace for the command: what is written to `timens_offsets`.
    pub(crate) time_offsets: Option<Vec<u8>>,
    /// A new session keyring.
    pub(crate) keyring: bool,
    /// Ids and capabilities.
    pub(crate) capabilities: CapabilitiesPlan,
    /// The mount table; `None` without a mount namespace.
    pub(crate) mounts: Option<ArmedMounts>,
    /// A place for each tree's descriptor.
    pub(crate) trees: Vec<RawFd>,
    /// Working directory inside.
    pub(crate) cwd: CString,
    /// fd to put at 0, 1, 2; `None` leaves the inherited one.
    pub(crate) stdio: [Option<RawFd>; 3],
    /// Which of 0, 1, 2 become a terminal of the sandbox's own.
    pub(crate) terminal: [bool; 3],
    /// A slave that the supervisor already opened on the host's devpts (no devpts inside).
    pub(crate) host_terminal: Option<RawFd>,
    /// Security label for the exec: attribute file below `/proc/thread-self/attr` and text.
    pub(crate) label: Option<(CString, Vec<u8>)>,
    /// Limits.
    pub(crate) rlimits: Vec<Rlimit>,
    /// Ruleset and path rules.
    pub(crate) landlock: Option<(OwnedFd, Vec<(CString, u64)>)>,
    /// Filter, and flags of seccomp(2).
    pub(crate) seccomp: Option<(Vec<libc::sock_filter>, u64)>,
    /// For the fourth argument of execve.
    pub(crate) exec_cookie: u64,
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    /// Arguments.
    pub(crate) argv: CStringArray,
    /// Environment.
    pub(crate) envp: CStringArray,
    /// Where the command's process starts.
    pub(crate) stack: Stack,
}

/// A failed step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) stage: Stage,
    pub(crate) index: u16,
    pub(crate) errno: Errno,
}

impl Stage {
    /// For `map_err`: a fault of this stage.
    fn fault(self) -> impl Fn(Errno) -> Fault {
        move |errno| Fault {
            stage: self,
            index: 0,
            errno,
        }
    }

    fn fault_at(self) -> impl Fn((u16, Errno)) -> Fault {
        move |(index, errno)| Fault {
            stage: self,
            index,
            errno,
        }
    }
}

impl Fault {
    fn raw(self) -> RawFault {
        RawFault {
            stage: self.stage as u8,
            index: self.index,
            errno: self.errno as i32,
        }
    }
}

/// One message of init to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The command has been exec'd. With it come the listener and the terminal's master, as the flags say.
    Started {
        listener: bool,
        terminal: bool,
        at_ns: u64,
    },
    /// The command has ended with this wait status.
    Ended {
        status: i32,
        at_ns: u64,
        usage: crate::sys::process::Rusage,
    },
}

/// Bytes of a message.
pub(crate) const MESSAGE_BYTES: usize = 64;

impl Message {
    pub(crate) fn encode(self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut put = |at: usize, value: u64| bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        match self {
            Message::Started {
                listener,
                terminal,
                at_ns,
            } => {
                put(0, 1);
                put(1, u64::from(listener) | u64::from(terminal) << 1);
                put(2, at_ns);
            }
            Message::Ended { status, at_ns, usage } => {
                put(0, 2);
                put(1, u64::from(status.cast_unsigned()));
                put(2, at_ns);
                put(3, usage.user_us);
                put(4, usage.system_us);
                put(5, usage.max_rss_bytes);
                put(6, usage.major_faults);
                put(7, usage.context_switches);
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
        let get = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_le_bytes(word)
        };
        match get(0) {
            1 => Some(Message::Started {
                listener: get(1) & 1 != 0,
                terminal: get(1) & 2 != 0,
                at_ns: get(2),
            }),
            2 => Some(Message::Ended {
                status: u32::try_from(get(1)).ok()?.cast_signed(),
                at_ns: get(2),
                usage: crate::sys::process::Rusage {
                    user_us: get(3),
                    system_us: get(4),
                    max_rss_bytes: get(5),
                    major_faults: get(6),
                    context_switches: get(7),
                },
            }),
            _ => None,
        }
    }
}

/// Closes every descriptor that is not in `keep` (ascending) nor 0, 1, 2.
fn close_others(keep: &[RawFd]) -> Result<(), Errno> {
    let mut next = 3u32;
    for fd in keep {
        let fd = fd.unsigned_abs();
        if fd > next {
            close_run(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_run(next, u32::MAX)
}

fn close_run(first: u32, last: u32) -> Result<(), Errno> {
    match fd::close_range(first, last, 0) {
        // Before Linux 5.9: one by one; no table is larger than this unless root raised nr_open.
        Err(Errno::ENOSYS) => {
            for number in first..=last.min(65_536) {
                fd::close(number.cast_signed());
            }
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_comes_back_from_its_number() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_number(stage as u8), Some(stage));
        }
        assert_eq!(Stage::from_number(29), None);
    }

    #[test]
    fn messages_come_back_as_sent() {
        let usage = crate::sys::process::Rusage {
            user_us: 1,
            system_us: 2,
            max_rss_bytes: 3,
            major_faults: 4,
            context_switches: 5,
        };
        for message in [
            Message::Started {
                listener: true,
                terminal: false,
                at_ns: 9,
            },
            Message::Started {
                listener: false,
                terminal: true,
                at_ns: 9,
            },
            Message::Ended {
                status: -1,
                at_ns: 7,
                usage,
            },
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[3; MESSAGE_BYTES]), None);
        assert_eq!(Message::decode(&[1]), None);
    }
}
