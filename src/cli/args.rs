//! The command line as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Run a command you do not trust, and see what was denied and why.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command under a profile.
    Run(Box<Run>),
    /// List, show and check profiles.
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Say what this machine can enforce.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Names and descriptions.
    List,
    /// The profile after merging all it extends, as JSON.
    Show {
        /// Name or path.
        name: String,
    },
    /// Say whether profiles are right.
    Check {
        /// Names or paths.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Options of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: the command's own; 128+n after signal n; 124 after a time limit; 125 when the sandbox \
    failed or refused; 126 not executable; 127 not found.\n\nExample: sandbox run default --rw ./out -- make test"
)]
pub(crate) struct Run {
    /// Profile name (see `sandbox profile list`) or path.
    pub(crate) profile: String,
    /// The command and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
    /// Print the plan instead of running.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show a host path read-only (repeatable).
    #[arg(long, value_name = "PATH[:DEST]")]
    pub(crate) ro: Vec<String>,
    /// Show a host path writable (repeatable).
    #[arg(long, value_name = "PATH[:DEST]")]
    pub(crate) rw: Vec<String>,
    /// Mount an empty tmpfs (repeatable).
    #[arg(long, value_name = "DEST")]
    pub(crate) tmpfs: Vec<String>,
    /// Set a variable, or pass the caller's through (repeatable).
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Working directory inside.
    #[arg(long, value_name = "DIR")]
    pub(crate) chdir: Option<String>,
    /// Memory of the whole tree, e.g. 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// CPU time of the whole tree, e.g. 2s.
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu_time: Option<String>,
    /// Time on the clock, e.g. 10s.
    #[arg(long, value_name = "TIME")]
    pub(crate) wall_time: Option<String>,
    /// Processes and threads at once.
    #[arg(long, value_name = "N")]
    pub(crate) processes: Option<u64>,
    /// CPUs' worth of time, e.g. 1.5.
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<f64>,
    /// Bytes of stdout and stderr together, e.g. 16MiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) output_limit: Option<String>,
    /// Read stdin from a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) stdin: Option<String>,
    /// Write stdout to a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) stdout: Option<String>,
    /// Write stderr to a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) stderr: Option<String>,
    /// Write the report as JSON; `-` is stdout, after the command's output.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) report: Option<PathBuf>,
    /// Write the report as JSON to an open descriptor.
    #[arg(long, value_name = "N", conflicts_with = "report")]
    pub(crate) report_fd: Option<i32>,
    /// Go on where this layer cannot be enforced, and say so in the report (repeatable).
    #[arg(long, value_name = "LAYER")]
    pub(crate) best_effort: Vec<String>,
    /// Refuse where this layer cannot be enforced (repeatable).
    #[arg(long, value_name = "LAYER")]
    pub(crate) require: Vec<String>,
    /// Do not apply this layer (repeatable).
    #[arg(long, value_name = "LAYER")]
    pub(crate) off: Vec<String>,
    /// Print a summary of every run, not only of those that were denied something.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print no summary.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}
