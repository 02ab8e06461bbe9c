//! Making groups, reading them, killing and removing them.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::facts::{Controller, Version};
use super::{CgroupPlan, GroupPlan};
use crate::sys::{Errno, process};

/// What went wrong with a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the message shows")]
pub enum CgroupError {
    /// A file could not be read.
    Read { path: PathBuf, why: String },
    /// A directory could not be made.
    Make { path: PathBuf, why: String },
    /// A value was not taken.
    Write {
        path: PathBuf,
        value: String,
        why: String,
    },
    /// Another value is in force than was written.
    ReadBack {
        path: PathBuf,
        wanted: String,
        got: String,
    },
    /// Processes are left after the deadline.
    Kill { path: PathBuf, left: usize },
    /// A directory could not be removed.
    Remove { path: PathBuf, why: String },
}

impl fmt::Display for CgroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CgroupError::Read { path, why } => write!(f, "cannot read {}: {why}", path.display()),
            CgroupError::Make { path, why } => write!(f, "cannot make the cgroup {}: {why}", path.display()),
            CgroupError::Write { path, value, why } => {
                write!(f, "cannot write {value:?} to {}: {why}", path.display())
            }
            CgroupError::ReadBack { path, wanted, got } => {
                write!(
                    f,
                    "{} holds {got:?} after {wanted:?} was written to it",
                    path.display()
                )
            }
            CgroupError::Kill { path, left } => {
                write!(
                    f,
                    "{left} processes of {} did not end within a second of SIGKILL",
                    path.display()
                )
            }
            CgroupError::Remove { path, why } => {
                write!(f, "cannot remove the cgroup {}: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for CgroupError {}

impl CgroupError {
    /// The next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            CgroupError::Write { .. } | CgroupError::ReadBack { .. } => {
                Some("the value is not possible here: correct the limit, or pass --best-effort cgroup".into())
            }
            CgroupError::Make { .. } => Some("see `sandbox doctor`, or pass --best-effort cgroup".into()),
            CgroupError::Remove { path, .. } => Some(format!("rmdir {}", path.display())),
            CgroupError::Read { .. } | CgroupError::Kill { .. } => None,
        }
    }
}

/// Figures of the whole tree. What the kernel does not count is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupUsage {
    /// CPU time, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Its part in user mode, nanoseconds.
    pub user_ns: Option<u64>,
    /// Its part in the kernel, nanoseconds.
    pub system_ns: Option<u64>,
    /// Largest memory, bytes.
    pub memory_peak: Option<u64>,
    /// Most tasks at once (Linux 6.1).
    pub pids_peak: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Forks refused by the limit.
    pub process_limit_hits: u64,
}

/// What an event may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Memory ran out.
    Memory,
    /// A fork was refused.
    Processes,
}

#[derive(Debug)]
struct Group {
    path: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Group {
    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// A number of a `key value` file.
    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        self.read(file)?
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }
}

/// The groups of a run. Removed on drop.
#[derive(Debug)]
pub struct ArmedCgroup {
    groups: Vec<Group>,
    join: Vec<OwnedFd>,
    clone_into: Option<OwnedFd>,
    cpu: Option<(File, Version)>,
    events: Vec<(OwnedFd, EventKind, bool)>,
    /// Kept so that the kernel's side of an eventfd has something to be about.
    _watched: Vec<File>,
}

fn open(path: &Path, write: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    open(path, true)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| CgroupError::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            why: describe(&error),
        })
}

fn describe(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |code| Errno::from_raw(code).desc().to_owned(),
    )
}

const PAGE: u64 = 4096;

fn in_force(wanted: &str, got: &str) -> bool {
    let got = got.trim();
    match (wanted.parse::<u64>(), got.parse::<u64>()) {
        // Memory is counted in pages.
        (Ok(wanted), Ok(exact)) => wanted == exact || wanted / PAGE == exact / PAGE && exact <= wanted,
        // Lists such as cpusets come back in normal form, device lines among others.
        _ => {
            got == wanted
                || wanted
                    .split_whitespace()
                    .all(|word| got.split([' ', '\n']).any(|g| g == word))
        }
    }
}

fn setting(directory: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    write(&path, value)?;
    let mut got = String::new();
    open(&path, false)
        .and_then(|mut f| f.read_to_string(&mut got))
        .map_err(|error| CgroupError::Read {
            path: path.clone(),
            why: describe(&error),
        })?;
    if in_force(value, &got) {
        return Ok(());
    }
    Err(CgroupError::ReadBack {
        path,
        wanted: value.to_owned(),
        got: got.trim().to_owned(),
    })
}

const PREFIX: &str = "sandbox-";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Groups that a killed supervisor left: ours by name, its pid gone, empty (rmdir fails on others).
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .and_then(|n| n.split('-').next()?.parse().ok());
        if let Some(pid) = pid
            && process::kill(pid, 0) == Err(Errno::ESRCH)
        {
            // Busy: its last process is still ending; the next run will get it.
            std::fs::remove_dir(entry.path()).unwrap_or(());
        }
    }
}

fn make(plan: &GroupPlan) -> Result<PathBuf, CgroupError> {
    sweep(&plan.parent);
    if !plan.enable.is_empty() {
        let control = plan.parent.join("cgroup.subtree_control");
        let enabled = std::fs::read_to_string(&control).unwrap_or_default();
        for name in plan
            .enable
            .iter()
            .filter(|name| !enabled.split_whitespace().any(|e| e == **name))
        {
            write(&control, &format!("+{name}"))?;
        }
    }
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = plan
            .parent
            .join(format!("{PREFIX}{}-{number}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Never a group that somebody else made: its limits and counters would be another's.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 100_000 => {}
            Err(error) => {
                return Err(CgroupError::Make {
                    path,
                    why: describe(&error),
                });
            }
        }
    }
}

impl ArmedCgroup {
    /// Makes the groups, writes the limits and reads each back.
    ///
    /// # Errors
    /// Names the file; whatever was made is removed.
    pub fn arm(plan: &CgroupPlan) -> Result<ArmedCgroup, CgroupError> {
        let mut armed = ArmedCgroup {
            groups: Vec::new(),
            join: Vec::new(),
            clone_into: None,
            cpu: None,
            events: Vec::new(),
            _watched: Vec::new(),
        };
        for group in &plan.groups {
            let path = make(group)?;
            armed.groups.push(Group {
                path: path.clone(),
                version: group.version,
                controllers: group.controllers.clone(),
            });
            for (file, value) in &group.settings {
                setting(&path, file, value)?;
            }
            armed.open_group(&path, group)?;
        }
        Ok(armed)
    }

    fn open_group(&mut self, path: &Path, group: &GroupPlan) -> Result<(), CgroupError> {
        let read = |file: &str, writing: bool| {
            let path = path.join(file);
            open(&path, writing).map_err(|error| CgroupError::Read {
                path,
                why: describe(&error),
            })
        };
        match group.version {
            Version::V1 => {
                self.join.push(read("tasks", true)?.into());
                if group.controllers.contains(&Controller::Cpuacct) {
                    self.cpu = Some((read("cpuacct.usage", false)?, Version::V1));
                }
                if group.controllers.contains(&Controller::Memory) {
                    self.watch_oom(path)?;
                }
            }
            Version::V2 => {
                let directory = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_CLOEXEC | libc::O_DIRECTORY | libc::O_NOFOLLOW)
                    .open(path);
                let directory = directory.map_err(|e| CgroupError::Read {
                    path: path.to_owned(),
                    why: describe(&e),
                })?;
                self.clone_into = Some(directory.into());
                if self.cpu.is_none() {
                    self.cpu = Some((read("cpu.stat", false)?, Version::V2));
                }
                if group.controllers.contains(&Controller::Memory) {
                    self.events
                        .push((read("memory.events", false)?.into(), EventKind::Memory, true));
                }
            }
        }
        if group.controllers.contains(&Controller::Pids) {
            self.events
                .push((read("pids.events", false)?.into(), EventKind::Processes, true));
        }
        Ok(())
    }

    /// v1: an eventfd that the kernel writes to when memory runs out (cgroup-v1/memory.rst).
    fn watch_oom(&mut self, path: &Path) -> Result<(), CgroupError> {
        let control = path.join("memory.oom_control");
        let file = open(&control, false).map_err(|e| CgroupError::Read {
            path: control,
            why: describe(&e),
        })?;
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| CgroupError::Read {
                path: path.to_owned(),
                why: e.desc().to_owned(),
            })?;
        let registration = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
        write(&path.join("cgroup.event_control"), &registration)?;
        self.events.push((event.into(), EventKind::Memory, false));
        self._watched.push(file);
        Ok(())
    }

    /// v1 `tasks` files; the child writes `0` to each.
    #[must_use]
    pub fn join_fds(&self) -> Vec<RawFd> {
        self.join.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// v2 directory for `CLONE_INTO_CGROUP` (Linux 5.7).
    #[must_use]
    pub fn clone_into(&self) -> Option<RawFd> {
        self.clone_into.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Descriptors for epoll: with `true` for `EPOLLPRI`, else `EPOLLIN`.
    pub fn event_fds(&self) -> impl Iterator<Item = (RawFd, EventKind, bool)> {
        self.events
            .iter()
            .map(|(fd, kind, priority)| (fd.as_raw_fd(), *kind, *priority))
    }

    /// Makes an event source quiet until the next event.
    pub fn acknowledge(&self, fd: RawFd) {
        let mut buffer = [0; 512];
        // An eventfd is emptied by read, a kernfs file by reading it from its start.
        if crate::sys::fd::pread(fd, &mut buffer, 0).is_err() {
            crate::sys::fd::read(fd, &mut buffer).unwrap_or(0);
        }
    }

    /// CPU time of the tree, nanoseconds.
    #[must_use]
    pub fn cpu_ns(&self) -> Option<u64> {
        let (file, version) = self.cpu.as_ref()?;
        let mut buffer = [0; 512];
        let length = file.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        match version {
            Version::V1 => text.trim().parse().ok(),
            Version::V2 => {
                let us: u64 = text
                    .lines()
                    .find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse().ok())?;
                Some(us * 1000)
            }
        }
    }

    /// All figures.
    #[must_use]
    pub fn usage(&self) -> CgroupUsage {
        let mut usage = CgroupUsage {
            cpu_ns: self.cpu_ns(),
            ..CgroupUsage::default()
        };
        for group in &self.groups {
            match group.version {
                Version::V1 => {
                    if group.has(Controller::Cpuacct) {
                        usage.user_ns = group.number("cpuacct.usage_user");
                        usage.system_ns = group.number("cpuacct.usage_sys");
                    }
                    if group.has(Controller::Memory) {
                        usage.memory_peak = group.number("memory.max_usage_in_bytes");
                        usage.oom_kills += group.keyed("memory.oom_control", "oom_kill ").unwrap_or(0);
                    }
                }
                Version::V2 => {
                    usage.user_ns = group.keyed("cpu.stat", "user_usec ").map(|us| us * 1000);
                    usage.system_ns = group.keyed("cpu.stat", "system_usec ").map(|us| us * 1000);
                    if group.has(Controller::Memory) {
                        usage.memory_peak = group.number("memory.peak");
                        usage.oom_kills += group.keyed("memory.events", "oom_kill ").unwrap_or(0);
                    }
                }
            }
            if group.has(Controller::Pids) {
                usage.pids_peak = group.number("pids.peak");
                usage.process_limit_hits += group.keyed("pids.events", "max ").unwrap_or(0);
            }
        }
        usage
    }

    /// Ends every process of the groups.
    ///
    /// # Errors
    /// When some are left after a second.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + Duration::from_secs(1);
        for group in &self.groups {
            // One write on v2 (Linux 5.14); else each in turn, again and again, for they may fork meanwhile.
            let at_once = group.version == Version::V2 && write(&group.path.join("cgroup.kill"), "1").is_ok();
            loop {
                let members = group.read("cgroup.procs").unwrap_or_default();
                let pids: Vec<i32> = members
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .filter(|p| *p > 0)
                    .collect();
                if pids.is_empty() {
                    break;
                }
                if !at_once {
                    for pid in &pids {
                        // ESRCH: it ended meanwhile.
                        process::kill(*pid, libc::SIGKILL).unwrap_or(());
                    }
                }
                if Instant::now() > deadline {
                    return Err(CgroupError::Kill {
                        path: group.path.clone(),
                        left: pids.len(),
                    });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Removes the groups; the last process may need some milliseconds to be gone from them.
    ///
    /// # Errors
    /// Names the first directory that stays.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        let deadline = Instant::now() + Duration::from_millis(500);
        for group in self.groups.drain(..) {
            loop {
                match std::fs::remove_dir(&group.path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    Err(error) => {
                        result = result.and(Err(CgroupError::Remove {
                            path: group.path,
                            why: describe(&error),
                        }));
                        break;
                    }
                }
            }
        }
        result
    }
}

impl Drop for ArmedCgroup {
    fn drop(&mut self) {
        // Whoever wants to know calls `remove`; this is for the ways out of an error.
        self.clear().unwrap_or(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_rounded_down_to_a_page_is_in_force() {
        assert!(in_force("10000", "8192\n"));
        assert!(!in_force("10000", "12288\n"));
        assert!(!in_force("10000", "9223372036854771712\n"));
    }

    #[test]
    fn texts_are_compared_word_by_word() {
        assert!(in_force("50000 100000", "50000 100000\n"));
        assert!(in_force("0-1", "0-1\n"));
        assert!(in_force("254:0 1048576", "254:0 1048576\n254:16 5\n"));
        assert!(!in_force("9999", "\n"));
    }
}
