//! Answering the filter's notifications: each denied call is recorded and fails with the errno that the plan says.

use std::collections::HashMap;
use std::os::fd::RawFd;

use crate::layers::seccomp::{self, SeccompPlan, action_name};
use crate::plan::Plan;
use crate::profile::model::Action;
use crate::report::model::{Completeness, CompletenessState, Violation};
use crate::sys::Errno;
use crate::sys::seccomp as kernel;

/// More different denials than this are counted only.
const MOST: usize = 256;
/// One turn answers at most this many, so that a flood does not keep limits from being looked at.
const BURST: usize = 64;

/// What was denied.
#[derive(Debug, Default)]
pub(super) struct Denials {
    records: Vec<Violation>,
    index: HashMap<(i32, u64, Option<String>), usize>,
    lost: u64,
    pub(super) hung_up: bool,
}

/// Which argument of a call is a path.
fn path_argument(call: &str) -> Option<usize> {
    Some(match call {
        "open" | "creat" | "mkdir" | "rmdir" | "unlink" | "chdir" | "chroot" | "chmod" | "chown"
        | "lchown" | "truncate" | "execve" | "mknod" | "rename" | "link" | "symlink" | "stat" | "lstat"
        | "statfs" | "access" | "swapon" | "swapoff" | "acct" | "pivot_root" | "umount2" | "fsopen" => 0,
        "mount" | "openat" | "openat2" | "open_tree" | "mkdirat" | "mknodat" | "unlinkat" | "fchmodat"
        | "fchownat" | "execveat" | "name_to_handle_at" | "fspick" | "mount_setattr" | "statx"
        | "newfstatat" => 1,
        _ => return None,
    })
}

/// A violation with nothing but its layer.
pub(super) fn empty(layer: &str) -> Violation {
    Violation {
        layer: layer.into(),
        syscall: None,
        args: Vec::new(),
        path: None,
        address: None,
        errno: None,
        pid: None,
        exe: None,
        count: 1,
        rule: None,
        hint: None,
    }
}

impl Denials {
    /// Answers what waits.
    pub(super) fn answer(&mut self, listener: RawFd, filter: &SeccompPlan, plan: &Plan) {
        for _ in 0..BURST {
            match readable(listener) {
                Some(true) => {}
                Some(false) => return,
                None => {
                    self.hung_up = true;
                    return;
                }
            }
            let notification = match kernel::receive(listener) {
                Ok(notification) => notification,
                // Killed between poll and receive.
                Err(Errno::ENOENT | Errno::EINTR) => continue,
                Err(_) => return,
            };
            let number = notification.nr.cast_unsigned();
            let decision = filter.decide(number, &notification.args);
            // Whatever the decision is, the filter has sent it here because it is denied.
            let errno = match decision.action {
                Action::Errno(errno) => i32::from(errno),
                _ => libc::EPERM,
            };
            let call = seccomp::name(number).map_or_else(|| format!("syscall_{number}"), str::to_owned);
            let pid = notification.pid.cast_signed();
            let path = path_argument(&call)
                .and_then(|argument| read_string(pid, notification.args[argument]))
                // What was read is that process' only if it is still the one that waits.
                .filter(|_| kernel::id_valid(listener, notification.id));
            let key = (notification.nr, notification.args[0] & 0xffff_ffff, path.clone());
            if let Some(index) = self.index.get(&key) {
                self.records[*index].count += 1;
            } else if self.records.len() < MOST {
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
                let mut record = empty("seccomp");
                record.args = notification.args.iter().map(|a| format!("{a:#x}")).collect();
                record.path = path;
                record.errno = Some(action_name(Action::Errno(u16::try_from(errno).unwrap_or(1))));
                record.pid = inner_pid(pid);
                record.exe = exe.map(|path| path.to_string_lossy().into_owned());
                record.rule = Some(plan.rule(decision.origin));
                record.hint = Some(hint(&call, &decision.origin.pointer));
                record.syscall = Some(call);
                self.index.insert(key, self.records.len());
                self.records.push(record);
            } else {
                self.lost += 1;
            }
            // ENOENT: killed meanwhile.
            kernel::respond_errno(listener, notification.id, errno).unwrap_or(());
        }
    }

    pub(super) fn into_report(self) -> (Vec<Violation>, Completeness) {
        let state = if self.lost == 0 {
            CompletenessState::Exact
        } else {
            CompletenessState::Lossy
        };
        let lost = (self.lost > 0).then_some(self.lost);
        (
            self.records,
            Completeness {
                source: "seccomp".into(),
                state,
                lost,
            },
        )
    }
}

fn hint(call: &str, pointer: &str) -> String {
    if pointer == "/network" {
        return "allow it with \"network\": {\"mode\": \"loopback\"} or \"host\"".into();
    }
    format!("allow it with \"syscalls\": {{\"allow\": [\"{call}\"]}}")
}

/// `None`: nobody can send any more.
fn readable(listener: RawFd) -> Option<bool> {
    let fd = crate::sys::fd::borrow(listener);
    let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).ok()?;
    let events = fds[0].revents()?;
    if events.contains(nix::poll::PollFlags::POLLIN) {
        return Some(true);
    }
    (!events.contains(nix::poll::PollFlags::POLLHUP)).then_some(false)
}

/// A NUL-terminated string of another process, at most 4096 bytes of it.
fn read_string(pid: i32, address: u64) -> Option<String> {
    let mut buffer = [0; 4096];
    // Up to the end of its page first: what follows may not be mapped.
    let first = usize::try_from(4096 - address % 4096).unwrap_or(4096);
    let mut length = kernel::read_memory(pid, address, &mut buffer[..first]).ok()?;
    if !buffer[..length].contains(&0) && length == first {
        length += kernel::read_memory(pid, address + first as u64, &mut buffer[first..]).unwrap_or(0);
    }
    let text = buffer[..length].split(|b| *b == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The last number of `NSpid` (proc_pid_status(5)).
fn inner_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}
