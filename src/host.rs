//! Facts about this kernel, this user and this run's surroundings, gathered once and cheaply: the plan is a pure
//! function of a profile and of these. No mechanism is here; what can only be learnt by trying is in
//! [`Host::try_namespaces`], which runs a throw-away child and is kept off the launch path.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::resource::Resource;
use serde::Serialize;

use crate::layers::cgroup::CgroupFacts;
use crate::sys::{Errno, security};

/// `CAP_SETGID`
pub const CAP_SETGID: u32 = 6;
/// `CAP_SETUID`
pub const CAP_SETUID: u32 = 7;
/// `CAP_SYS_ADMIN`
pub const CAP_SYS_ADMIN: u32 = 21;

/// What a plan needs to know about the machine and the caller.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Real user id of the caller.
    pub uid: u32,
    /// Real group id of the caller.
    pub gid: u32,
    /// Effective user id; differs from `uid` only in a setuid install, which is refused.
    pub euid: u32,
    /// Supplementary groups besides `gid`.
    pub other_groups: Vec<u32>,
    /// Effective capabilities, bit n for capability n.
    pub capabilities: u64,
    /// Highest capability this kernel knows.
    pub last_capability: u32,
    /// Kernel version (major, minor).
    pub kernel: (u32, u32),
    /// Landlock ABI, or the errno that says why there is none.
    pub landlock: Result<u32, i32>,
    /// cgroup hierarchies; `None` where probing failed, with the reason.
    pub cgroup: Result<CgroupFacts, String>,
    /// Linux Security Modules that are active, when securityfs tells.
    pub lsm: Vec<String>,
    /// The whole machine's ids are visible: this is not a user namespace of somebody else.
    pub initial_user_namespace: bool,
    /// Hard limits by RLIMIT number.
    pub hard_limits: Vec<(u32, u64)>,
    /// Files below `/proc` that exist and are hidden from a command.
    pub proc_masks: Vec<ProcMask>,
    /// The caller's working directory.
    pub cwd: PathBuf,
    /// The caller's environment.
    #[serde(skip)]
    pub environment: Vec<(OsString, OsString)>,
    /// Process id of the supervisor, which makes the outer user id of a root caller's command unique.
    #[serde(skip)]
    pub pid: u32,
}

/// A path below `/proc` that says too much about the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcMask {
    /// Relative to `/proc`.
    pub name: &'static str,
    /// Directory or file.
    pub directory: bool,
}

/// What OCI runtimes mask too, and what tells one run about another. Write access needs no mask: the whole mount
/// is read-only. What only host root may read (0400) needs none either: no command runs as host root.
const PROC_SECRETS: [&str; 14] = [
    "acpi",
    "asound",
    "bus",
    "driver",
    "fs",
    "interrupts",
    "irq",
    "kallsyms",
    "keys",
    "key-users",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
];

/// What kind of file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket or fifo.
    Special,
}

/// What lstat(2) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// The host's files as a plan sees them: the real ones, or a table in a test.
pub trait Files {
    /// lstat(2)
    ///
    /// # Errors
    /// Its errno.
    fn lstat(&self, path: &Path) -> Result<FileFacts, Errno>;
    /// readlink(2)
    ///
    /// # Errors
    /// Its errno.
    fn readlink(&self, path: &Path) -> Result<PathBuf, Errno>;
}

/// The files of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn lstat(&self, path: &Path) -> Result<FileFacts, Errno> {
        let metadata = std::fs::symlink_metadata(path).map_err(|e| errno_of(&e))?;
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            FileKind::Special
        } else {
            FileKind::File
        };
        Ok(FileFacts {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            dev: metadata.dev(),
            ino: metadata.ino(),
        })
    }

    fn readlink(&self, path: &Path) -> Result<PathBuf, Errno> {
        std::fs::read_link(path).map_err(|e| errno_of(&e))
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Host {
    /// Looks around: some thirty system calls.
    ///
    /// # Errors
    /// Names the fact that could not be had.
    pub fn probe() -> Result<Host, String> {
        let uid = nix::unistd::getuid().as_raw();
        let gid = nix::unistd::getgid().as_raw();
        let groups =
            nix::unistd::getgroups().map_err(|e| format!("cannot read the group list: {}", e.desc()))?;
        let (capabilities, _) =
            security::capabilities().map_err(|e| format!("cannot read our capabilities: {}", e.desc()))?;
        let cwd = std::env::current_dir().map_err(|e| format!("cannot tell the working directory: {e}"))?;
        Ok(Host {
            uid,
            gid,
            euid: nix::unistd::geteuid().as_raw(),
            other_groups: groups
                .into_iter()
                .map(nix::unistd::Gid::as_raw)
                .filter(|g| *g != gid)
                .collect(),
            capabilities,
            last_capability: last_capability(),
            kernel: kernel_version(),
            landlock: security::landlock_abi().map_err(|e| e as i32),
            cgroup: CgroupFacts::probe().map_err(|e| e.to_string()),
            lsm: std::fs::read_to_string("/sys/kernel/security/lsm")
                .map(|text| text.trim().split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            initial_user_namespace: initial_user_namespace(),
            hard_limits: hard_limits(),
            proc_masks: proc_masks(),
            cwd,
            environment: std::env::vars_os().collect(),
            pid: std::process::id(),
        })
    }

    /// May the caller change mounts of the initial namespace and write any id map: root as it is on a host.
    #[must_use]
    pub fn privileged(&self) -> bool {
        let all = 1 << CAP_SYS_ADMIN | 1 << CAP_SETUID | 1 << CAP_SETGID;
        self.capabilities & all == all && self.euid == 0
    }

    /// A variable of the caller's environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// The hard limit of a resource.
    #[must_use]
    pub fn hard_limit(&self, resource: u32) -> u64 {
        self.hard_limits
            .iter()
            .find(|(r, _)| *r == resource)
            .map_or(u64::MAX, |(_, limit)| *limit)
    }
}

fn last_capability() -> u32 {
    (0..=security::CAP_MAX)
        .take_while(|cap| security::in_bounding(*cap).is_ok())
        .last()
        .unwrap_or(0)
}

fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn initial_user_namespace() -> bool {
    // user_namespaces(7): the initial namespace maps all of 0..2^32-1 onto itself.
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

fn hard_limits() -> Vec<(u32, u64)> {
    [
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_CPU,
    ]
    .into_iter()
    .filter_map(|resource| {
        nix::sys::resource::getrlimit(resource)
            .ok()
            .map(|(_, hard)| (resource as u32, hard))
    })
    .collect()
}

fn proc_masks() -> Vec<ProcMask> {
    PROC_SECRETS
        .iter()
        .filter_map(|name| {
            let metadata = std::fs::symlink_metadata(Path::new("/proc").join(name)).ok()?;
            Some(ProcMask {
                name,
                directory: metadata.is_dir(),
            })
        })
        .collect()
}

/// A descriptor of this process by number, if it is open.
#[must_use]
pub fn descriptor(number: i32) -> Option<std::os::fd::BorrowedFd<'static>> {
    crate::sys::fd::fstat(number)
        .is_ok()
        .then(|| crate::sys::fd::borrow(number))
}
