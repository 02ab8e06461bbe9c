//! seccomp(2): which system calls pass. [`plan`] resolves names to a chain of rules a number, [`bpf`] turns the
//! chains into a program, [`SeccompPlan::decide`] is the reference both for tests and for answering notifications.

#![expect(clippy::cast_possible_truncation, reason = "errno constants are small")]

pub mod bpf;
mod groups;
pub mod import;
#[cfg(test)]
mod interpret;
mod numbers;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::profile::model::{Action, ArgOp, ArgTest, NetworkMode, Origin, Syscalls};

#[cfg(target_arch = "aarch64")]
use numbers::AARCH64 as NATIVE;
#[cfg(target_arch = "x86_64")]
use numbers::X86_64 as NATIVE;

/// Number of a system call on this architecture.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    NATIVE
        .binary_search_by(|(n, _)| (*n).cmp(name))
        .ok()
        .map(|index| NATIVE[index].1)
}

/// Name of a system call on this architecture.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    NATIVE.iter().find(|(_, n)| *n == number).map(|(name, _)| *name)
}

/// Is this a system call's name on any architecture we know?
#[must_use]
pub fn is_known(name: &str) -> bool {
    [numbers::X86_64, numbers::AARCH64]
        .iter()
        .any(|t| t.binary_search_by(|(n, _)| (*n).cmp(name)).is_ok())
}

/// Members of a group (`@file-io`), groups in it resolved.
#[must_use]
pub fn group(name: &str) -> Option<Vec<&'static str>> {
    let (_, members) = groups::GROUPS.iter().find(|(n, _)| *n == name)?;
    let mut all = Vec::new();
    for member in *members {
        match member.strip_prefix('@') {
            Some(_) => all.extend(group(member)?),
            None => all.push(*member),
        }
    }
    Some(all)
}

/// Names of all groups.
pub fn group_names() -> impl Iterator<Item = &'static str> {
    groups::GROUPS.iter().map(|(name, _)| *name)
}

/// Why a filter cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the message shows")]
pub enum SeccompError {
    /// No such system call or group.
    UnknownName {
        name: String,
        meant: Option<&'static str>,
        origin: Origin,
    },
    /// More than the kernel's 4096 instructions.
    TooLong { instructions: usize },
    /// An argument index above 5.
    ArgIndex { index: u8, origin: Origin },
}

impl fmt::Display for SeccompError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SeccompError::UnknownName { name, .. } if name.starts_with('@') => {
                write!(f, "there is no group of system calls named {name}")
            }
            SeccompError::UnknownName { name, .. } => write!(f, "there is no system call named {name}"),
            SeccompError::TooLong { instructions } => {
                write!(
                    f,
                    "the filter has {instructions} instructions, more than the kernel's 4096"
                )
            }
            SeccompError::ArgIndex { index, .. } => {
                write!(f, "a system call has arguments 0 to 5, not {index}")
            }
        }
    }
}

impl std::error::Error for SeccompError {}

impl SeccompError {
    /// The next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            SeccompError::UnknownName {
                meant: Some(meant), ..
            } => Some(format!("did you mean {meant}?")),
            SeccompError::UnknownName { .. } => {
                Some("names are as in syscalls(2); groups start with @".into())
            }
            SeccompError::TooLong { .. } => Some("use fewer rules with arguments".into()),
            SeccompError::ArgIndex { .. } => None,
        }
    }

    /// The profile line at fault.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            SeccompError::UnknownName { origin, .. } | SeccompError::ArgIndex { origin, .. } => Some(origin),
            SeccompError::TooLong { .. } => None,
        }
    }
}

/// One rule in a system call's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// All must hold.
    pub tests: Vec<ArgTest>,
    /// What happens then.
    pub action: Action,
    /// Index into [`SeccompPlan::origins`].
    pub origin: usize,
    /// A denial that programs expect (a probe with a fall-back): answered by the filter, not reported.
    pub quiet: bool,
}

/// The filter of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompPlan {
    /// By number; a chain that no rule ends falls through to the default.
    pub chains: BTreeMap<u32, Vec<Link>>,
    /// For known numbers.
    pub default_action: Action,
    /// For numbers that this program does not know.
    pub unknown_action: Action,
    /// Where rules come from; the default's is the first.
    pub origins: Vec<Origin>,
}

impl Serialize for SeccompPlan {
    /// Names by action; a name with argument tests is followed by `(…)`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut by_action: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (number, chain) in &self.chains {
            let call = name(*number).map_or_else(|| number.to_string(), str::to_owned);
            for link in chain {
                let call = if link.tests.is_empty() {
                    call.clone()
                } else {
                    format!("{call}(…)")
                };
                by_action.entry(action_name(link.action)).or_default().push(call);
            }
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("default", &action_name(self.default_action))?;
        map.serialize_entry("unknown", &action_name(self.unknown_action))?;
        for (action, calls) in by_action {
            map.serialize_entry(&action, &calls)?;
        }
        map.end()
    }
}

/// `allow`, `log`, `kill` or the errno's name.
#[must_use]
pub fn action_name(action: Action) -> String {
    match action {
        Action::Allow => "allow".into(),
        Action::Log => "log".into(),
        Action::Kill => "kill".into(),
        Action::Errno(errno) => format!("{:?}", crate::sys::Errno::from_raw(i32::from(errno))),
    }
}

/// What is decided about one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What happens.
    pub action: Action,
    /// The line that says so.
    pub origin: &'a Origin,
    /// Not reported.
    pub quiet: bool,
}

impl SeccompPlan {
    /// What the filter decides: the reference.
    #[must_use]
    pub fn decide(&self, number: u32, args: &[u64; 6]) -> Decision<'_> {
        if let Some(chain) = self.chains.get(&number) {
            for link in chain {
                if link.tests.iter().all(|test| holds(test, args)) {
                    let origin = &self.origins[link.origin];
                    return Decision {
                        action: link.action,
                        origin,
                        quiet: link.quiet,
                    };
                }
            }
        } else if name(number).is_none() {
            return Decision {
                action: self.unknown_action,
                origin: &self.origins[0],
                quiet: false,
            };
        }
        Decision {
            action: self.default_action,
            origin: &self.origins[0],
            quiet: false,
        }
    }

    /// Can this call pass with any arguments?
    #[must_use]
    pub fn may_pass(&self, number: u32) -> bool {
        let passes = |action| matches!(action, Action::Allow | Action::Log);
        match self.chains.get(&number) {
            Some(chain) => {
                chain.iter().any(|link| passes(link.action))
                    || passes(self.default_action) && !chain.iter().any(|link| link.tests.is_empty())
            }
            None => passes(self.default_action),
        }
    }

    /// Names of calls that can pass.
    #[must_use]
    pub fn passing(&self) -> Vec<&'static str> {
        NATIVE
            .iter()
            .filter(|(_, number)| self.may_pass(*number))
            .map(|(name, _)| *name)
            .collect()
    }
}

fn holds(test: &ArgTest, args: &[u64; 6]) -> bool {
    let arg = args[usize::from(test.index)];
    match test.op {
        ArgOp::Eq => arg == test.value,
        ArgOp::Ne => arg != test.value,
        ArgOp::Lt => arg < test.value,
        ArgOp::Le => arg <= test.value,
        ArgOp::Gt => arg > test.value,
        ArgOp::Ge => arg >= test.value,
        ArgOp::MaskedEq { mask } => arg & mask == test.value,
    }
}

const CLONE_NEW: u64 = 0x7e02_0080;
const LOW: u64 = 0xffff_ffff;

struct Planner {
    plan: SeccompPlan,
}

impl Planner {
    fn rule(&mut self, name: &str, tests: &[ArgTest], action: Action, origin: usize, quiet: bool) {
        let Some(number) = number(name) else { return };
        let chain = self.plan.chains.entry(number).or_default();
        // Behind a rule without tests nothing is reached.
        if !chain.last().is_some_and(|link| link.tests.is_empty()) {
            chain.push(Link {
                tests: tests.to_vec(),
                action,
                origin,
                quiet,
            });
        }
    }

    fn origin(&mut self, origin: Origin) -> usize {
        self.plan.origins.push(origin);
        self.plan.origins.len() - 1
    }
}

/// Resolves a profile's rules. `network` adds the socket families that its mode leaves; `None` adds no rule.
///
/// # Errors
/// A name that does not exist.
pub fn plan(
    syscalls: &Syscalls,
    network: Option<(NetworkMode, &Origin)>,
) -> Result<SeccompPlan, SeccompError> {
    let unknown = if syscalls.default_action == Action::Kill {
        Action::Kill
    } else {
        Action::Errno(libc::ENOSYS as u16)
    };
    let mut planner = Planner {
        plan: SeccompPlan {
            chains: BTreeMap::new(),
            default_action: syscalls.default_action,
            unknown_action: unknown,
            origins: vec![syscalls.default_origin.clone()],
        },
    };
    let nested = syscalls.rules.iter().any(|r| {
        matches!(r.action, Action::Allow) && r.names.iter().any(|n| n == "unshare" || n == "@namespace")
    });
    structural(&mut planner, nested);
    for rule in &syscalls.rules {
        let origin = planner.origin(rule.origin.clone());
        for test in &rule.args {
            if test.index > 5 {
                return Err(SeccompError::ArgIndex {
                    index: test.index,
                    origin: rule.origin.clone(),
                });
            }
        }
        for name in &rule.names {
            for name in resolve(name, &rule.origin)? {
                planner.rule(name, &rule.args, rule.action, origin, false);
            }
        }
    }
    if let Some((mode, origin)) = network {
        families(&mut planner, mode, origin);
    }
    Ok(planner.plan)
}

fn resolve<'a>(name: &'a str, origin: &Origin) -> Result<Vec<&'a str>, SeccompError> {
    let unknown = |meant| SeccompError::UnknownName {
        name: name.to_owned(),
        meant,
        origin: origin.clone(),
    };
    if name.starts_with('@') {
        return group(name).ok_or_else(|| unknown(crate::profile::suggest::closest(name, group_names())));
    }
    if is_known(name) {
        return Ok(vec![name]);
    }
    Err(unknown(crate::profile::suggest::closest(
        name,
        numbers::X86_64.iter().map(|(n, _)| *n),
    )))
}

/// What holds whatever the profile says, because one call can do the work of another that it denies.
fn structural(planner: &mut Planner, nested: bool) {
    let eperm = Action::Errno(libc::EPERM as u16);
    let origin = planner.origin(Origin {
        file: "builtin:structure".into(),
        pointer: "/syscalls".into(),
    });
    let masked = |index, mask, value| ArgTest {
        index,
        op: ArgOp::MaskedEq { mask },
        value,
    };
    // The kernel's own way back from a signal, and the ways to end.
    for name in ["rt_sigreturn", "restart_syscall", "exit", "exit_group"] {
        planner.rule(name, &[], Action::Allow, origin, false);
    }
    if !nested {
        // Any bit of CLONE_NEW*: a rule a bit, for a masked test cannot say "not zero".
        for bit in (0..32)
            .map(|n| 1u64 << n)
            .filter(|bit| CLONE_NEW & bit != 0 && *bit != 0x80)
        {
            planner.rule("clone", &[masked(0, bit, bit)], eperm, origin, false);
        }
    }
    // Its flags are in memory, where a filter cannot look; libc falls back to clone.
    planner.rule("clone3", &[], Action::Errno(libc::ENOSYS as u16), origin, true);
    // The kernel looks at the low half of the request only. (CVE-2019-10063)
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        planner.rule("ioctl", &[masked(1, LOW, request)], eperm, origin, false);
    }
    // Only questions, and the default execution domain.
    for allowed in [0, LOW] {
        planner.rule(
            "personality",
            &[masked(0, LOW, allowed)],
            Action::Allow,
            origin,
            false,
        );
    }
    planner.rule("personality", &[], eperm, origin, false);
    // A listener of its own would take precedence over ours. (seccomp_unotify(2))
    let new_listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    planner.rule(
        "seccomp",
        &[masked(1, new_listener, new_listener)],
        eperm,
        origin,
        false,
    );
}

/// Narrows every rule that lets a socket be made to the families that the network mode leaves.
fn families(planner: &mut Planner, mode: NetworkMode, origin: &Origin) {
    let origin = planner.origin(origin.clone());
    let low = |index, value: i32| ArgTest {
        index,
        op: ArgOp::MaskedEq { mask: LOW },
        value: value.unsigned_abs().into(),
    };
    let mut kept = vec![vec![low(0, libc::AF_UNIX)]];
    if mode != NetworkMode::None {
        kept.push(vec![low(0, libc::AF_INET)]);
        kept.push(vec![low(0, libc::AF_INET6)]);
        // Routing questions (getifaddrs), no other netlink protocol.
        kept.push(vec![low(0, libc::AF_NETLINK), low(2, libc::NETLINK_ROUTE)]);
    }
    let refuse = Action::Errno(libc::EAFNOSUPPORT as u16);
    for call in ["socket", "socketpair"] {
        let Some(chain) = number(call).and_then(|number| planner.plan.chains.get_mut(&number)) else {
            continue;
        };
        let mut narrowed = Vec::new();
        for link in chain.drain(..) {
            if !matches!(link.action, Action::Allow | Action::Log) {
                narrowed.push(link);
                continue;
            }
            for family in &kept {
                let tests = link.tests.iter().chain(family).copied().collect();
                narrowed.push(Link {
                    tests,
                    ..link.clone()
                });
            }
            narrowed.push(Link {
                tests: link.tests.clone(),
                action: refuse,
                origin,
                quiet: false,
            });
        }
        *chain = narrowed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::model::SyscallRule;

    pub(super) fn origin(pointer: &str) -> Origin {
        Origin {
            file: "t.json".into(),
            pointer: pointer.into(),
        }
    }

    pub(super) fn syscalls(rules: &[(&[&str], Action)]) -> Syscalls {
        Syscalls {
            rules: rules
                .iter()
                .enumerate()
                .map(|(index, (names, action))| SyscallRule {
                    names: names.iter().map(|n| (*n).to_owned()).collect(),
                    args: vec![],
                    action: *action,
                    origin: origin(&format!("/syscalls/{index}")),
                })
                .collect(),
            default_action: Action::Errno(1),
            default_origin: origin("/syscalls/default_action"),
        }
    }

    fn default_plan(mode: NetworkMode) -> SeccompPlan {
        plan(
            &syscalls(&[(&["@default"], Action::Allow)]),
            Some((mode, &origin("/network"))),
        )
        .unwrap()
    }

    fn decide(plan: &SeccompPlan, call: &str, args: [u64; 6]) -> Action {
        plan.decide(number(call).unwrap(), &args).action
    }

    #[test]
    fn tables_are_sorted_and_every_call_is_in_a_group() {
        for table in [numbers::X86_64, numbers::AARCH64] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0));
        }
        let grouped: Vec<_> = groups::GROUPS
            .iter()
            .flat_map(|(_, m)| m.iter())
            .filter(|m| !m.starts_with('@'))
            .collect();
        for (name, _) in numbers::X86_64 {
            assert!(grouped.contains(&name), "{name} is in no group");
        }
        for member in grouped {
            assert!(is_known(member), "{member} does not exist");
        }
    }

    #[test]
    fn the_default_group_lets_nothing_dangerous_pass() {
        let plan = default_plan(NetworkMode::Host);
        for call in [
            "mount",
            "fsopen",
            "open_tree",
            "move_mount",
            "mount_setattr",
            "umount2",
            "pivot_root",
            "chroot",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "kcmp",
            "pidfd_getfd",
            "io_uring_setup",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "unshare",
            "setns",
            "kexec_load",
            "init_module",
            "swapon",
            "reboot",
            "quotactl",
            "acct",
            "syslog",
            "settimeofday",
            "clock_settime",
            "open_by_handle_at",
            "fanotify_init",
            "clone3",
        ] {
            assert!(!plan.may_pass(number(call).unwrap()), "{call}");
        }
    }

    #[test]
    fn clone_may_not_make_namespaces() {
        let plan = default_plan(NetworkMode::None);
        assert_eq!(decide(&plan, "clone", [17, 0, 0, 0, 0, 0]), Action::Allow);
        for flag in [
            0x1000_0000,
            0x0002_0000,
            0x4000_0000u64,
            0x2000_0000,
            0x0800_0000,
            0x0400_0000,
            0x0200_0000,
        ] {
            assert_eq!(
                decide(&plan, "clone", [flag | 17, 0, 0, 0, 0, 0]),
                Action::Errno(1),
                "{flag:x}"
            );
        }
    }

    #[test]
    fn terminal_injection_is_refused_whatever_the_high_bits_are() {
        let plan = default_plan(NetworkMode::None);
        assert_eq!(decide(&plan, "ioctl", [0, 0x5412, 0, 0, 0, 0]), Action::Errno(1));
        assert_eq!(
            decide(&plan, "ioctl", [0, 0x5412 | 1 << 32, 0, 0, 0, 0]),
            Action::Errno(1)
        );
        assert_eq!(decide(&plan, "ioctl", [0, 0x5413, 0, 0, 0, 0]), Action::Allow);
    }

    #[test]
    fn families_follow_the_network_mode() {
        let refuse = Action::Errno(libc::EAFNOSUPPORT as u16);
        let none = default_plan(NetworkMode::None);
        let host = default_plan(NetworkMode::Host);
        for (family, in_none, in_host) in [
            (1, true, true),
            (2, false, true),
            (10, false, true),
            (17, false, false),
            (40, false, false),
        ] {
            let expect = |pass| if pass { Action::Allow } else { refuse };
            assert_eq!(
                decide(&none, "socket", [family, 1, 0, 0, 0, 0]),
                expect(in_none),
                "none {family}"
            );
            assert_eq!(
                decide(&host, "socket", [family, 1, 0, 0, 0, 0]),
                expect(in_host),
                "host {family}"
            );
        }
        assert_eq!(decide(&host, "socket", [16, 3, 0, 0, 0, 0]), Action::Allow);
        assert_eq!(decide(&host, "socket", [16, 3, 9, 0, 0, 0]), refuse);
    }

    #[test]
    fn the_first_rule_decides_and_is_named() {
        let plan = plan(
            &syscalls(&[
                (&["mkdir"], Action::Errno(13)),
                (&["@file-system"], Action::Allow),
            ]),
            None,
        )
        .unwrap();
        let decision = plan.decide(number("mkdir").unwrap(), &[0; 6]);
        assert_eq!(
            (decision.action, decision.origin.pointer.as_str()),
            (Action::Errno(13), "/syscalls/0")
        );
        assert_eq!(decide(&plan, "rmdir", [0; 6]), Action::Allow);
    }

    #[test]
    fn unknown_numbers_answer_enosys_so_that_libc_falls_back() {
        assert_eq!(
            default_plan(NetworkMode::None).decide(600, &[0; 6]).action,
            Action::Errno(38)
        );
    }

    #[test]
    fn a_misspelt_name_is_met_with_the_right_one() {
        let error = plan(&syscalls(&[(&["opneat"], Action::Allow)]), None).unwrap_err();
        assert_eq!(error.to_string(), "there is no system call named opneat");
        assert_eq!(error.hint().unwrap(), "did you mean openat?");
        let error = plan(&syscalls(&[(&["@file-oi"], Action::Allow)]), None).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean @file-io?");
    }
}
