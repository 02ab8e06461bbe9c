//! The report's data: the contract `sandbox.report/1` that others script against.
//!
//! Fields are only ever added; a change of meaning changes [`SCHEMA`].

use serde::{Deserialize, Serialize};

/// The value of the report's `schema` field.
pub const SCHEMA: &str = "sandbox.report/1";

/// All that is known about one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The command and its arguments; bytes that are not UTF-8 are replaced.
    pub command: Vec<String>,
    /// Which profile.
    pub profile: ProfileRef,
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// What was enforced.
    pub layers: Vec<LayerReport>,
    /// What was denied.
    pub violations: Vec<Violation>,
    /// How complete `violations` is, for each source.
    pub completeness: Vec<Completeness>,
}

/// Which profile was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileRef {
    /// Name or path it was asked for by.
    pub name: String,
    /// SHA-256 over its files.
    pub sha256: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In one word.
    pub status: Status,
    /// The command's exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), when one ended it.
    pub signal: Option<String>,
    /// The limit that ended it, by its name in the profile (`wall_time`).
    pub limit: Option<String>,
    /// For `refused` and `error`: what failed, on which object, why.
    pub message: Option<String>,
    /// For `refused` and `error`: the next step.
    pub hint: Option<String>,
}

/// How a run ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The command exited by itself.
    Exited,
    /// A signal ended it that is no limit of ours.
    Signaled,
    /// `wall_time` or `cpu_time`
    TimeLimit,
    /// `memory`
    MemoryLimit,
    /// `processes`
    ProcessLimit,
    /// `output`
    OutputLimit,
    /// A required layer cannot be enforced here; the command was not started.
    Refused,
    /// The command could not be started, or the sandbox itself failed.
    Error,
}

/// What a run used. A figure that is not known is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Clock time from exec to end, microseconds.
    pub wall_time_us: u64,
    /// CPU time of the tree, microseconds.
    pub cpu_time_us: Option<u64>,
    /// Its part in user mode, microseconds.
    pub user_time_us: Option<u64>,
    /// Its part in the kernel, microseconds.
    pub system_time_us: Option<u64>,
    /// Largest memory of the tree, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Most processes and threads at once.
    pub processes_peak: Option<u64>,
    /// Bytes written to stdout and stderr, where the supervisor carried them.
    pub output_bytes: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Voluntary and involuntary context switches.
    pub context_switches: Option<u64>,
    /// Where CPU and memory figures come from: `cgroup` (whole tree, exact) or `estimate`.
    pub source: String,
}

/// What one layer enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its name.
    pub layer: String,
    /// In one word.
    pub state: LayerState,
    /// What it enforces, or what is missing and why.
    pub detail: String,
    /// What is missing, item by item.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// How much of a layer is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// All that the profile asks of it.
    Enforced,
    /// Less; see `missing`.
    Partial,
    /// Nothing of it.
    Unavailable,
    /// The profile does not ask for it.
    Off,
}

/// Something asked for that this host cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What is not enforced.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

/// One thing that was denied, with repeats counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The layer that denied it.
    pub layer: String,
    /// The system call.
    pub syscall: Option<String>,
    /// Its arguments as text.
    #[serde(default)]
    pub args: Vec<String>,
    /// The path it was about.
    pub path: Option<String>,
    /// The socket address it was about.
    pub address: Option<String>,
    /// The errno's name that it got.
    pub errno: Option<String>,
    /// Process id inside the sandbox, of the first.
    pub pid: Option<i32>,
    /// Its executable.
    pub exe: Option<String>,
    /// How often.
    pub count: u64,
    /// What decided.
    pub rule: Option<Rule>,
    /// What would allow it.
    pub hint: Option<String>,
}

/// The profile line that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// File, `builtin:NAME` or `option:--NAME`.
    pub file: String,
    /// Its line, from 1.
    pub line: Option<u32>,
    /// JSON pointer.
    pub pointer: String,
}

/// How complete the violations of one source are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completeness {
    /// `seccomp`, `limits`, …
    pub source: String,
    /// In one word.
    pub state: CompletenessState,
    /// How many were lost, when `lossy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// How complete a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompletenessState {
    /// Every denial is there.
    Exact,
    /// Attempts that were observed; the kernel decided by itself.
    Attempts,
    /// Some were lost.
    Lossy,
    /// This source does not report here.
    None,
}
