//! Docker's and OCI's seccomp JSON: `defaultAction`, `syscalls[].names/action/args/includes/excludes`.

#![expect(clippy::cast_possible_truncation, reason = "errno constants are small")]

use std::fmt;

use serde::Deserialize;

use crate::profile::model::{Action, ArgOp, ArgTest, Origin, SyscallRule};

/// What conditional rules (`includes`, `excludes`) are judged by.
#[derive(Debug, Clone)]
pub struct ImportContext<'a> {
    /// Go's name of the architecture: `amd64`, `arm64`.
    pub arch: &'a str,
    /// Capabilities the command keeps.
    pub capabilities: &'a [String],
    /// Kernel version.
    pub kernel: (u32, u32),
}

/// What a file said.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// In its order: OCI's first match decides too.
    pub rules: Vec<SyscallRule>,
    /// `defaultAction`
    pub default_action: Action,
    /// Names that do not exist here, left out.
    pub unknown_names: Vec<String>,
}

/// Why a file cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the message shows")]
pub enum ImportError {
    /// Not the expected JSON.
    Json {
        message: String,
        line: usize,
        column: usize,
    },
    /// An action that this program does not have.
    Action { action: String, at: String },
    /// An unknown comparison.
    Op { op: String, at: String },
    /// An argument index above 5.
    Index { index: u64, at: String },
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportError::Json {
                message,
                line,
                column,
            } => write!(f, "{message} at line {line} column {column}"),
            ImportError::Action { action, at } => write!(f, "{at}: the action {action} cannot be imported"),
            ImportError::Op { op, at } => write!(f, "{at}: there is no comparison {op}"),
            ImportError::Index { index, at } => {
                write!(f, "{at}: a system call has arguments 0 to 5, not {index}")
            }
        }
    }
}

impl std::error::Error for ImportError {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Condition {
    fn empty(&self) -> bool {
        self.caps.is_empty() && self.arches.is_empty() && self.min_kernel.is_none()
    }

    fn kernel_reached(&self, context: &ImportContext<'_>) -> Option<bool> {
        let mut parts = self
            .min_kernel
            .as_ref()?
            .split('.')
            .map(|part| part.parse().unwrap_or(u32::MAX));
        Some(context.kernel >= (parts.next().unwrap_or(u32::MAX), parts.next().unwrap_or(0)))
    }

    /// All that is named is the case: for `includes`.
    fn all(&self, context: &ImportContext<'_>) -> bool {
        (self.caps.is_empty() || self.caps.iter().all(|cap| context.capabilities.contains(cap)))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| arch == context.arch))
            && self.kernel_reached(context).unwrap_or(true)
    }

    /// Anything that is named is the case: for `excludes`.
    fn any(&self, context: &ImportContext<'_>) -> bool {
        !self.empty()
            && (self.caps.iter().any(|cap| context.capabilities.contains(cap))
                || self.arches.iter().any(|arch| arch == context.arch)
                || self.kernel_reached(context).unwrap_or(false))
    }
}

fn action(name: &str, errno: Option<u16>, at: &str) -> Result<Action, ImportError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_KILL_THREAD" => Action::Kill,
        // TRAP, TRACE and NOTIFY need a program that answers.
        other => {
            return Err(ImportError::Action {
                action: other.to_owned(),
                at: at.to_owned(),
            });
        }
    })
}

/// Reads a Docker or OCI seccomp profile. `file` names it in origins.
///
/// # Errors
/// What cannot be expressed, with its place.
pub fn import(text: &str, context: &ImportContext<'_>, file: &str) -> Result<Imported, ImportError> {
    let parsed: File = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        ImportError::Json {
            message,
            line: error.line(),
            column: error.column(),
        }
    })?;
    let mut imported = Imported {
        rules: Vec::new(),
        default_action: action(&parsed.default_action, parsed.default_errno_ret, "/defaultAction")?,
        unknown_names: Vec::new(),
    };
    for (index, rule) in parsed.syscalls.iter().enumerate() {
        let at = format!("/syscalls/{index}");
        let verdict = action(
            &rule.action,
            rule.errno_ret.or(parsed.default_errno_ret),
            &format!("{at}/action"),
        )?;
        let args = rule
            .args
            .iter()
            .flatten()
            .enumerate()
            .map(|(n, arg)| argument(arg, &format!("{at}/args/{n}")))
            .collect::<Result<Vec<_>, _>>()?;
        let wanted = rule.includes.as_ref().is_none_or(|c| c.all(context))
            && !rule.excludes.as_ref().is_some_and(|c| c.any(context));
        if !wanted {
            continue;
        }
        let (names, unknown): (Vec<String>, Vec<String>) = rule
            .names
            .iter()
            .chain(&rule.name)
            .cloned()
            .partition(|name| super::is_known(name));
        imported.unknown_names.extend(unknown);
        let origin = Origin {
            file: file.into(),
            pointer: at,
        };
        imported.rules.push(SyscallRule {
            names,
            args,
            action: verdict,
            origin,
        });
    }
    Ok(imported)
}

fn argument(arg: &Arg, at: &str) -> Result<ArgTest, ImportError> {
    let index = u8::try_from(arg.index)
        .ok()
        .filter(|index| *index <= 5)
        .ok_or_else(|| ImportError::Index {
            index: arg.index,
            at: at.to_owned(),
        })?;
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_EQ" => (ArgOp::Eq, arg.value),
        "SCMP_CMP_NE" => (ArgOp::Ne, arg.value),
        "SCMP_CMP_LT" => (ArgOp::Lt, arg.value),
        "SCMP_CMP_LE" => (ArgOp::Le, arg.value),
        "SCMP_CMP_GT" => (ArgOp::Gt, arg.value),
        "SCMP_CMP_GE" => (ArgOp::Ge, arg.value),
        "SCMP_CMP_MASKED_EQ" => (ArgOp::MaskedEq { mask: arg.value }, arg.value_two),
        other => {
            return Err(ImportError::Op {
                op: other.to_owned(),
                at: at.to_owned(),
            });
        }
    };
    Ok(ArgTest { index, op, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: ImportContext<'_> = ImportContext {
        arch: "amd64",
        capabilities: &[],
        kernel: (5, 10),
    };

    #[test]
    fn conditions_on_capabilities_and_kernels_are_judged() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],
             "excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390"]}}]}"#;
        let imported = import(text, &CONTEXT, "docker.json").unwrap();
        let names: Vec<_> = imported.rules.iter().flat_map(|r| r.names.clone()).collect();
        assert_eq!(names, ["read", "ptrace", "clone"]);
        assert_eq!(imported.unknown_names, ["no_such_call"]);
        assert_eq!(imported.default_action, Action::Errno(38));
        assert_eq!(
            imported.rules[2].args[0].op,
            ArgOp::MaskedEq { mask: 2_114_060_288 }
        );
    }

    #[test]
    fn what_cannot_be_expressed_is_named_with_its_place() {
        let text =
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_TRACE"}]}"#;
        let error = import(text, &CONTEXT, "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/syscalls/0/action: the action SCMP_ACT_TRACE cannot be imported"
        );
    }
}
