//! A profile after loading: every `extends` merged, every unit parsed, every default filled in.
//!
//! The JSON text as written is in [`super::source`]; what follows is what the rest of the crate reads. Strings
//! that may hold variables (`${HOME}`, `${CWD}`) are still unexpanded here: they are facts of a run, not of a profile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// Where in which profile file a value was written, so that a report can point at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The profile's file path, or `builtin:NAME`, or `option:--memory` for a command-line option.
    pub file: Arc<str>,
    /// RFC 6901 JSON pointer inside that file; empty for a command-line option.
    pub pointer: String,
}

/// The text of one profile file that took part, kept to turn a JSON pointer into a line.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The same name as [`Origin::file`].
    pub name: Arc<str>,
    /// The JSON text.
    pub text: Arc<str>,
}

/// A complete statement of what a command may do.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// The name it was asked for by (`default`, or a path).
    pub name: String,
    /// SHA-256 (hex) over the texts of all files that took part, in order of merging.
    pub sha256: String,
    /// One line for `profile list`.
    pub description: String,
    /// Which namespaces are made.
    pub namespaces: Namespaces,
    /// Who the command is inside.
    pub identity: Identity,
    /// A root file system from a directory; `None` composes one from `mounts` on an empty tmpfs.
    pub root: Option<Root>,
    /// The mount table, parents before children, at most one entry a destination.
    pub mounts: Vec<Mount>,
    /// Working directory inside (may hold variables).
    pub cwd: String,
    /// System calls.
    pub syscalls: Syscalls,
    /// Capabilities the command keeps inside its user namespace (`CAP_…`, upper case).
    pub capabilities: Vec<String>,
    /// Network.
    pub network: Network,
    /// Limits of resources.
    pub limits: Limits,
    /// Environment variables.
    pub environment: Environment,
    /// Standard streams.
    pub stdio: Stdio,
    /// AppArmor confinement, if asked for.
    pub apparmor: Option<AppArmor>,
    /// SELinux label, if asked for.
    pub selinux: Option<SeLinux>,
    /// How strictly each layer is wanted.
    pub layers: LayerModes,
    /// The files that took part, base first.
    #[serde(skip)]
    pub sources: Vec<SourceFile>,
}

/// Which namespaces the command gets of its own (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one switch for each kind of namespace"
)]
pub struct Namespaces {
    /// user_namespaces(7)
    pub user: bool,
    /// mount_namespaces(7)
    pub mount: bool,
    /// pid_namespaces(7)
    pub pid: bool,
    /// network_namespaces(7); must be set for `network.mode` `none` and `loopback`
    pub net: bool,
    /// ipc_namespaces(7)
    pub ipc: bool,
    /// uts_namespaces(7)
    pub uts: bool,
    /// cgroup_namespaces(7)
    pub cgroup: bool,
    /// time_namespaces(7): the clocks since boot start at zero inside
    pub time: bool,
}

/// Who the command is inside its user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// How many ids, from 0, exist inside: 1 maps `uid` and `gid` alone (needs no helper), more need root or
    /// `newuidmap` and an entry in `/etc/subuid`.
    pub id_count: u32,
    /// uts hostname.
    pub hostname: String,
}

/// A root file system from a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Host directory (may hold variables).
    pub path: String,
    /// How it is shown.
    pub access: RootAccess,
    /// Where it was written.
    pub origin: Origin,
}

/// How a root directory is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootAccess {
    /// Nothing can be changed.
    ReadOnly,
    /// Changes go to the host directory.
    ReadWrite,
    /// Changes go to a throw-away upper layer in memory.
    Overlay,
}

/// One entry of the mount table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Absolute path inside (may hold variables).
    pub destination: String,
    /// What is there.
    pub kind: MountKind,
    /// Where it was written.
    pub origin: Origin,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountKind {
    /// A file or directory of the host, with all that is mounted below it.
    Bind {
        /// Host path (may hold variables).
        source: String,
        /// May the command write.
        writable: bool,
        /// May the command execute files there.
        executable: bool,
        /// Absent on the host: leave it out instead of refusing.
        optional: bool,
        /// Files of the caller appear as the command's own and the other way round (matters for a root caller,
        /// whose command does not run as root): always so for a writable bind.
        caller_owned: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Upper bound in bytes; `None`: `limits.tmpfs_size`, else the memory limit, else 64 MiB.
        size_bytes: Option<u64>,
        /// Upper bound of inodes; `None`: one for each 4 KiB of size.
        inodes: Option<u64>,
        /// Permission bits of its root.
        mode: u32,
        /// May the command execute files there.
        executable: bool,
    },
    /// procfs of the new pid namespace, read-only, dangerous parts masked.
    Proc {
        /// `subset=pid`: only processes, nothing about the machine (Linux 5.8).
        pid_only: bool,
    },
    /// A minimal `/dev`: null zero full random urandom tty, own devpts, `shm`, the usual links.
    Dev,
    /// POSIX message queues of the new ipc namespace.
    Mqueue,
    /// A symbolic link.
    Symlink {
        /// What it points at.
        to: String,
    },
    /// A read-only file with given content.
    File {
        /// Its bytes (may hold variables).
        content: String,
        /// Permission bits.
        mode: u32,
    },
    /// An empty directory (in a composed root).
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// Host directories shown with a throw-away upper layer in memory: writes succeed and vanish.
    Overlay {
        /// Lower directories, uppermost first (may hold variables).
        lower: Vec<String>,
        /// Upper bound of the upper layer in bytes, as for a tmpfs.
        size_bytes: Option<u64>,
    },
    /// Hides what the mount above shows here: an empty read-only directory, or a file that reads as empty.
    Mask,
}

/// What happens at a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let it pass.
    Allow,
    /// Let it pass and note it in the kernel's audit log (`SECCOMP_RET_LOG`).
    Log,
    /// Fail with this errno.
    Errno(u16),
    /// End the process with SIGSYS (`SECCOMP_RET_KILL_PROCESS`).
    Kill,
}

/// A comparison of one argument register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ArgTest {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// How it is compared (unsigned, all 64 bits).
    pub op: ArgOp,
    /// With what.
    pub value: u64,
}

/// How an argument is compared; names as in the OCI runtime-spec without `SCMP_CMP_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArgOp {
    /// equal
    Eq,
    /// not equal
    Ne,
    /// less than
    Lt,
    /// less or equal
    Le,
    /// greater than
    Gt,
    /// greater or equal
    Ge,
    /// `argument & mask == value`
    MaskedEq {
        /// The bits that are looked at.
        mask: u64,
    },
}

/// One rule over system calls. In [`Syscalls::rules`] the first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SyscallRule {
    /// Names (`openat`) and groups (`@file-io`).
    pub names: Vec<String>,
    /// All must hold; empty always does.
    pub args: Vec<ArgTest>,
    /// What happens.
    pub action: Action,
    /// Where it was written.
    pub origin: Origin,
}

/// System calls: ordered rules, then a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Syscalls {
    /// First match decides. Rules of a derived profile stand before those it extends; inside one file `deny`
    /// stands before `allow`.
    pub rules: Vec<SyscallRule>,
    /// For known system calls that no rule names. (Unknown, newer ones answer ENOSYS unless this is `Kill`.)
    pub default_action: Action,
    /// Where the default was written.
    pub default_origin: Origin,
}

/// What the command may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Which network it sees.
    pub mode: NetworkMode,
    /// TCP ports it may bind; `None`: any (Landlock ABI 4, Linux 6.7).
    pub tcp_bind: Option<Vec<u16>>,
    /// TCP ports it may connect to; `None`: any (Landlock ABI 4, Linux 6.7).
    pub tcp_connect: Option<Vec<u16>>,
    /// Where it was written.
    pub origin: Origin,
}

/// Which network the command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// An empty network namespace, and only unix sockets can be made.
    None,
    /// A network namespace of its own with loopback up.
    Loopback,
    /// The host's network.
    Host,
}

/// Limits; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Limits {
    /// Time on the clock.
    pub wall_time: Option<Duration>,
    /// CPU time of the whole process tree.
    pub cpu_time: Option<Duration>,
    /// Memory of the whole tree, page cache and tmpfs included.
    pub memory_bytes: Option<u64>,
    /// Swap on top of it; 0 is the default when memory is limited.
    pub swap_bytes: Option<u64>,
    /// Processes and threads alive at once.
    pub processes: Option<u64>,
    /// What happens when `processes` is exceeded.
    pub on_process_limit: OnProcessLimit,
    /// CPUs' worth of time (1.5 = one and a half CPUs).
    pub cpus: Option<f64>,
    /// Relative weight, 1 to 10000 as in cgroup v2 `cpu.weight` (100 is usual).
    pub cpu_weight: Option<u64>,
    /// CPUs it may run on, as in cpuset(7) list format: `0-3,6`.
    pub cpuset: Option<String>,
    /// Bytes a second read from block devices.
    pub io_read_bytes_per_second: Option<u64>,
    /// Bytes a second written to block devices.
    pub io_write_bytes_per_second: Option<u64>,
    /// RLIMIT_NOFILE
    pub open_files: Option<u64>,
    /// RLIMIT_FSIZE in bytes
    pub file_size_bytes: Option<u64>,
    /// RLIMIT_STACK in bytes; `u64::MAX` is unlimited
    pub stack_bytes: Option<u64>,
    /// RLIMIT_CORE in bytes
    pub core_bytes: Option<u64>,
    /// stdout and stderr together
    pub output_bytes: Option<u64>,
    /// Default size of each tmpfs.
    pub tmpfs_bytes: Option<u64>,
    /// Where each field was written, by field name as in the JSON.
    pub origins: BTreeMap<String, Origin>,
}

/// What happens when the limit of processes is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnProcessLimit {
    /// The run ends with status `process_limit`.
    #[default]
    Kill,
    /// `fork` fails with EAGAIN and the run goes on.
    Deny,
}

/// Environment of the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Environment {
    /// Start from the caller's environment instead of an empty one.
    pub inherit: bool,
    /// Names passed through from the caller when set there; a trailing `*` matches any rest.
    pub keep: Vec<String>,
    /// Values set (may hold variables).
    pub set: BTreeMap<String, String>,
}

/// Standard streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Stdio {
    /// fd 0
    pub stdin: Stream,
    /// fd 1
    pub stdout: Stream,
    /// fd 2
    pub stderr: Stream,
}

/// Where a standard stream goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// The caller's; a terminal is replaced by a pty of our own.
    #[default]
    Inherit,
    /// `/dev/null`
    Null,
    /// A host file opened by the supervisor (may hold variables).
    File(String),
}

/// AppArmor confinement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppArmor {
    /// A policy that is already loaded; `None`: generate one from this profile.
    pub policy: Option<String>,
    /// Where it was written.
    pub origin: Origin,
}

/// SELinux label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeLinux {
    /// Context for the command, e.g. `system_u:system_r:container_t:s0`.
    pub label: String,
    /// Where it was written.
    pub origin: Origin,
}

/// The enforcement layers, in the order in which a report lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// namespaces(7): user, mount, pid, ipc, uts, cgroup, time
    Namespaces,
    /// the mount table and pivot_root(2)
    Mounts,
    /// network namespace and what may be reached
    Network,
    /// ids, groups, capabilities(7), securebits, no_new_privs
    Capabilities,
    /// setrlimit(2)
    Rlimits,
    /// cgroups(7) v1 and v2
    Cgroup,
    /// landlock(7)
    Landlock,
    /// apparmor(7)
    Apparmor,
    /// SELinux
    Selinux,
    /// seccomp(2)
    Seccomp,
}

/// How strictly a layer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum LayerMode {
    /// What cannot be enforced stops the run before exec.
    #[default]
    Required,
    /// What cannot be enforced is said in the report.
    BestEffort,
    /// Not applied.
    Off,
}

/// One mode for each layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(transparent)]
pub struct LayerModes {
    /// Layers that are not listed are `Required`.
    pub modes: BTreeMap<Layer, LayerMode>,
}

impl Layer {
    /// Every layer, in report order.
    pub const ALL: [Layer; 10] = [
        Layer::Namespaces,
        Layer::Mounts,
        Layer::Network,
        Layer::Capabilities,
        Layer::Rlimits,
        Layer::Cgroup,
        Layer::Landlock,
        Layer::Apparmor,
        Layer::Selinux,
        Layer::Seccomp,
    ];

    /// The name used in profiles, options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layer::Namespaces => "namespaces",
            Layer::Mounts => "mounts",
            Layer::Network => "network",
            Layer::Capabilities => "capabilities",
            Layer::Rlimits => "rlimits",
            Layer::Cgroup => "cgroup",
            Layer::Landlock => "landlock",
            Layer::Apparmor => "apparmor",
            Layer::Selinux => "selinux",
            Layer::Seccomp => "seccomp",
        }
    }
}

impl LayerModes {
    /// The mode of one layer.
    #[must_use]
    pub fn get(&self, layer: Layer) -> LayerMode {
        self.modes.get(&layer).copied().unwrap_or_default()
    }
}
