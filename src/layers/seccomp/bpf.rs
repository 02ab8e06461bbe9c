//! The generator of classic BPF: a binary tree over ranges of system call numbers, argument chains at its leaves.
//!
//! A filter of 303 allowed calls is 45 instructions this way; the kernel walks five or six of them a call.

#![expect(
    clippy::cast_possible_truncation,
    reason = "a 64-bit value is compared as two words of 32"
)]

use libc::sock_filter;

use super::{Link, SeccompError, SeccompPlan};
use crate::profile::model::{Action, ArgOp, ArgTest};

/// How a plan becomes a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompileOptions {
    /// Denials wait for the supervisor, which records and answers them.
    pub notify: bool,
    /// An execve with this in its fourth argument, which the kernel does not use, passes whatever the rules say:
    /// the launcher's own.
    pub exec_cookie: Option<u64>,
}

const MAX_INSTRUCTIONS: usize = 4096;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Where control goes; positions are counted from the end of the program while it is built back to front.
type Label = usize;

/// The program is built from its end, so that every jump knows its target and jumps only go forward.
struct Program {
    reversed: Vec<sock_filter>,
    options: CompileOptions,
}

impl Program {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(sock_filter { code, jt, jf, k });
        self.reversed.len()
    }

    /// How far it is from an instruction pushed next to `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target
    }

    /// A label that an 8-bit jump from the next instruction can reach, by a trampoline if need be. One push of
    /// room is left for the trampoline of the other branch.
    fn near(&mut self, target: Label) -> Label {
        if self.distance(target) < 254 {
            return target;
        }
        let k = u32::try_from(self.distance(target)).unwrap_or(u32::MAX);
        self.push(JUMP, 0, 0, k)
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let yes = self.near(yes);
        let no = self.near(no);
        let jt = u8::try_from(self.distance(yes)).unwrap_or(u8::MAX);
        let jf = u8::try_from(self.distance(no)).unwrap_or(u8::MAX);
        self.push(code, jt, jf, k)
    }

    fn load(&mut self, offset: u32, then: Label) -> Label {
        // A load falls through to what was pushed last, so a far `then` needs a jump in between.
        if then != self.reversed.len() {
            let k = u32::try_from(self.distance(then)).unwrap_or(u32::MAX);
            self.push(JUMP, 0, 0, k);
        }
        self.push(LOAD, 0, 0, offset)
    }

    fn verdict(&mut self, verdict: u32) -> Label {
        self.push(RETURN, 0, 0, verdict)
    }

    /// The kernel's return value for an action.
    fn value(&self, action: Action, quiet: bool) -> u32 {
        match action {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Log => libc::SECCOMP_RET_LOG,
            Action::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Action::Errno(_) if self.options.notify && !quiet => libc::SECCOMP_RET_USER_NOTIF,
            Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        }
    }

    /// One comparison of 64 bits on two words.
    fn test(&mut self, test: &ArgTest, yes: Label, no: Label) -> Label {
        let low = OFFSET_ARGS + 8 * u32::from(test.index);
        let high = low + 4;
        let (value_high, value_low) = ((test.value >> 32) as u32, test.value as u32);
        let (code, yes, no) = match test.op {
            ArgOp::Eq => (EQUAL, yes, no),
            ArgOp::Ne => (EQUAL, no, yes),
            ArgOp::Ge => (AT_LEAST, yes, no),
            ArgOp::Lt => (AT_LEAST, no, yes),
            ArgOp::Gt => (GREATER, yes, no),
            ArgOp::Le => (GREATER, no, yes),
            ArgOp::MaskedEq { mask } => return self.masked(low, mask, test.value, yes, no),
        };
        let last = self.branch(code, value_low, yes, no);
        let low = self.load(low, last);
        if code == EQUAL {
            let first = self.branch(EQUAL, value_high, low, no);
            return self.load(high, first);
        }
        // Equal high words: the low ones decide; else the high ones have.
        let unequal = self.branch(GREATER, value_high, yes, no);
        let first = self.branch(EQUAL, value_high, low, unequal);
        self.load(high, first)
    }

    fn masked(&mut self, low: u32, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        if value & !mask != 0 {
            // Never equal.
            return no;
        }
        let mut next = yes;
        for (offset, mask, value) in [
            (low, mask as u32, value as u32),
            (low + 4, (mask >> 32) as u32, (value >> 32) as u32),
        ] {
            // A word that the mask leaves out decides nothing.
            if mask == 0 {
                continue;
            }
            let compare = self.branch(EQUAL, value, next, no);
            next = if mask == u32::MAX {
                self.load(offset, compare)
            } else {
                if compare != self.reversed.len() {
                    let k = u32::try_from(self.distance(compare)).unwrap_or(u32::MAX);
                    self.push(JUMP, 0, 0, k);
                }
                let and = self.push(AND, 0, 0, mask);
                self.load(offset, and)
            };
        }
        next
    }

    fn chain(&mut self, chain: &[Link], otherwise: Label) -> Label {
        let mut next = otherwise;
        for link in chain.iter().rev() {
            let value = self.value(link.action, link.quiet);
            let hit = self.verdict(value);
            let mut entry = hit;
            for test in link.tests.iter().rev() {
                entry = self.test(test, entry, next);
            }
            next = entry;
        }
        next
    }
}

/// How one range of numbers is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Value(u32),
    /// Index of a chain with tests.
    Chain(usize),
}

/// Makes the program.
///
/// # Errors
/// When it is longer than the kernel takes.
pub fn compile(plan: &SeccompPlan, options: &CompileOptions) -> Result<Vec<sock_filter>, SeccompError> {
    let mut program = Program {
        reversed: Vec::new(),
        options: *options,
    };
    let execve = super::number("execve");
    let mut chains: Vec<Vec<Link>> = Vec::new();
    let mut ranges: Vec<(u32, Treatment)> = Vec::new();
    let mut add = |start: u32, treatment: Treatment| {
        if ranges.last().is_none_or(|(_, last)| *last != treatment) {
            ranges.push((start, treatment));
        }
    };
    let unknown = program.value(plan.unknown_action, false);
    let default = program.value(plan.default_action, false);
    let highest = super::NATIVE.iter().map(|(_, number)| *number).max().unwrap_or(0);
    let mut known = vec![false; highest as usize + 1];
    for (_, number) in super::NATIVE {
        known[*number as usize] = true;
    }
    for number in 0..=highest {
        let mut chain = plan.chains.get(&number).cloned().unwrap_or_default();
        if let Some(cookie) = options.exec_cookie.filter(|_| Some(number) == execve) {
            let tests = vec![ArgTest {
                index: 3,
                op: ArgOp::Eq,
                value: cookie,
            }];
            chain.insert(
                0,
                Link {
                    tests,
                    action: Action::Allow,
                    origin: 0,
                    quiet: false,
                },
            );
        }
        let treatment = match chain.first() {
            None if known[number as usize] => Treatment::Value(default),
            None => Treatment::Value(unknown),
            Some(link) if link.tests.is_empty() => Treatment::Value(program.value(link.action, link.quiet)),
            Some(_) => {
                chains.push(chain);
                Treatment::Chain(chains.len() - 1)
            }
        };
        add(number, treatment);
    }
    add(highest + 1, Treatment::Value(unknown));

    // Verdicts stand at the end, once each, where every branch reaches them forward.
    let mut verdicts: Vec<(u32, Label)> = Vec::new();
    let mut leaves = Vec::with_capacity(ranges.len());
    for (start, treatment) in &ranges {
        let label = match treatment {
            Treatment::Value(value) => match verdicts.iter().find(|(v, _)| v == value) {
                Some((_, label)) => *label,
                None => {
                    let label = program.verdict(*value);
                    verdicts.push((*value, label));
                    label
                }
            },
            Treatment::Chain(_) => 0,
        };
        leaves.push((*start, label));
    }
    let fall_through = match verdicts.iter().find(|(v, _)| *v == default) {
        Some((_, label)) => *label,
        None => program.verdict(default),
    };
    for (leaf, (_, treatment)) in leaves.iter_mut().zip(&ranges) {
        if let Treatment::Chain(index) = treatment {
            leaf.1 = program.chain(&chains[*index], fall_through);
        }
    }
    let root = tree(&mut program, &leaves);
    head(&mut program, root);
    if program.reversed.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong {
            instructions: program.reversed.len(),
        });
    }
    program.reversed.reverse();
    Ok(program.reversed)
}

fn tree(program: &mut Program, leaves: &[(u32, Label)]) -> Label {
    match leaves {
        [] => 0,
        [(_, label)] => *label,
        _ => {
            let middle = leaves.len() / 2;
            let (left, right) = leaves.split_at(middle);
            let pivot = right[0].0;
            let right = tree(program, right);
            let left = tree(program, left);
            program.branch(AT_LEAST, pivot, right, left)
        }
    }
}

/// Architecture and the x32 bit before anything else: other calling conventions number their calls otherwise.
fn head(program: &mut Program, root: Label) {
    const X32_BIT: u32 = 0x4000_0000;
    let enosys = program.verdict(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs());
    let kill = program.verdict(libc::SECCOMP_RET_KILL_PROCESS);
    let first = program.branch(AT_LEAST, X32_BIT, enosys, root);
    let number = program.load(OFFSET_NR, first);
    let native = program.branch(EQUAL, ARCH, number, kill);
    program.load(OFFSET_ARCH, native);
}

#[cfg(test)]
mod tests {
    use super::super::interpret::{Data, run};
    use super::super::tests::{origin, syscalls};
    use super::super::{NATIVE, SeccompPlan, name, number, plan};
    use super::*;
    use crate::profile::model::{NetworkMode, SyscallRule, Syscalls};

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }

        /// Values near each other, so that comparisons go both ways.
        fn value(&mut self) -> u64 {
            match self.below(4) {
                0 => self.below(4),
                1 => self.below(4) << 32 | self.below(4),
                2 => u64::MAX - self.below(4),
                _ => self.next(),
            }
        }
    }

    fn random_test(random: &mut Random) -> ArgTest {
        let value = random.value();
        let (op, value) = match random.below(7) {
            0 => (ArgOp::Eq, value),
            1 => (ArgOp::Ne, value),
            2 => (ArgOp::Lt, value),
            3 => (ArgOp::Le, value),
            4 => (ArgOp::Gt, value),
            5 => (ArgOp::Ge, value),
            _ => {
                let mask = random.value();
                (ArgOp::MaskedEq { mask }, value & mask)
            }
        };
        ArgTest {
            index: random.below(6) as u8,
            op,
            value,
        }
    }

    fn random_syscalls(random: &mut Random) -> Syscalls {
        let actions = [
            Action::Allow,
            Action::Errno(1),
            Action::Errno(13),
            Action::Kill,
            Action::Log,
        ];
        let mut rules = Vec::new();
        for index in 0..random.below(60) {
            let (call, _) = NATIVE[random.below(NATIVE.len() as u64) as usize];
            rules.push(SyscallRule {
                names: vec![call.to_owned()],
                args: (0..random.below(4)).map(|_| random_test(random)).collect(),
                action: actions[random.below(5) as usize],
                origin: origin(&format!("/{index}")),
            });
        }
        Syscalls {
            rules,
            default_action: actions[random.below(5) as usize],
            default_origin: origin("/default"),
        }
    }

    fn expected(plan: &SeccompPlan, data: &Data) -> u32 {
        if data.arch != ARCH {
            return libc::SECCOMP_RET_KILL_PROCESS;
        }
        if data.nr >= 0x4000_0000 {
            return libc::SECCOMP_RET_ERRNO | 38;
        }
        match plan.decide(data.nr, &data.args).action {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Log => libc::SECCOMP_RET_LOG,
            Action::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        }
    }

    #[test]
    fn the_program_decides_as_the_reference_does() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..400 {
            let syscalls = random_syscalls(&mut random);
            let network = (random.below(2) == 0).then_some(NetworkMode::Host);
            let network_origin = origin("/network");
            let plan = plan(&syscalls, network.map(|mode| (mode, &network_origin))).unwrap();
            let program = compile(&plan, &CompileOptions::default()).unwrap();
            for _ in 0..300 {
                let nr = match random.below(5) {
                    0 => 0x4000_0000 | random.below(500) as u32,
                    1 => random.below(700) as u32,
                    _ if !syscalls.rules.is_empty() => {
                        let rule = &syscalls.rules[random.below(syscalls.rules.len() as u64) as usize];
                        number(&rule.names[0]).unwrap()
                    }
                    _ => random.next() as u32,
                };
                let arch = if random.below(20) == 0 { 0x4000_0003 } else { ARCH };
                let args = std::array::from_fn(|_| random.value());
                let data = Data { nr, arch, args };
                assert_eq!(
                    run(&program, &data),
                    expected(&plan, &data),
                    "{nr} {:?} {args:x?}",
                    name(nr)
                );
            }
        }
    }

    #[test]
    fn seccompiler_agrees_on_what_it_can_express() {
        use seccompiler::{
            SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
            TargetArch,
        };
        let mut random = Random(77);
        for _ in 0..200 {
            let mut rules = std::collections::BTreeMap::<i64, Vec<SeccompRule>>::new();
            let mut ours = Vec::new();
            for index in 0..1 + random.below(40) {
                let (call, nr) = NATIVE[random.below(NATIVE.len() as u64) as usize];
                // Ours adds structure to these, which the oracle does not know.
                if matches!(
                    call,
                    "clone"
                        | "clone3"
                        | "ioctl"
                        | "personality"
                        | "seccomp"
                        | "rt_sigreturn"
                        | "restart_syscall"
                        | "exit"
                        | "exit_group"
                ) || rules.contains_key(&i64::from(nr))
                {
                    continue;
                }
                let args: Vec<ArgTest> = (0..random.below(3)).map(|_| random_test(&mut random)).collect();
                let conditions: Vec<_> = args
                    .iter()
                    .map(|test| {
                        let op = match test.op {
                            ArgOp::Eq => SeccompCmpOp::Eq,
                            ArgOp::Ne => SeccompCmpOp::Ne,
                            ArgOp::Lt => SeccompCmpOp::Lt,
                            ArgOp::Le => SeccompCmpOp::Le,
                            ArgOp::Gt => SeccompCmpOp::Gt,
                            ArgOp::Ge => SeccompCmpOp::Ge,
                            ArgOp::MaskedEq { mask } => SeccompCmpOp::MaskedEq(mask),
                        };
                        SeccompCondition::new(test.index, SeccompCmpArgLen::Qword, op, test.value).unwrap()
                    })
                    .collect();
                let entry = if conditions.is_empty() {
                    vec![]
                } else {
                    vec![SeccompRule::new(conditions).unwrap()]
                };
                rules.insert(i64::from(nr), entry);
                ours.push(SyscallRule {
                    names: vec![call.to_owned()],
                    args,
                    action: Action::Allow,
                    origin: origin(&format!("/{index}")),
                });
            }
            let arch: TargetArch = std::env::consts::ARCH.try_into().unwrap();
            let filter =
                SeccompFilter::new(rules, SeccompAction::Errno(1), SeccompAction::Allow, arch).unwrap();
            let oracle: seccompiler::BpfProgram = filter.try_into().unwrap();
            let oracle: Vec<sock_filter> = oracle
                .iter()
                .map(|i| sock_filter {
                    code: i.code,
                    jt: i.jt,
                    jf: i.jf,
                    k: i.k,
                })
                .collect();
            let syscalls = Syscalls {
                rules: ours.clone(),
                ..syscalls(&[])
            };
            let program = compile(&plan(&syscalls, None).unwrap(), &CompileOptions::default()).unwrap();
            for rule in &ours {
                for _ in 0..50 {
                    let args = std::array::from_fn(|_| random.value());
                    let data = Data {
                        nr: number(&rule.names[0]).unwrap(),
                        arch: ARCH,
                        args,
                    };
                    assert_eq!(run(&program, &data), run(&oracle, &data), "{rule:?} {args:x?}");
                }
            }
        }
    }

    #[test]
    fn the_default_group_is_a_small_tree() {
        let plan = plan(&syscalls(&[(&["@default"], Action::Allow)]), None).unwrap();
        let program = compile(
            &plan,
            &CompileOptions {
                notify: true,
                exec_cookie: None,
            },
        )
        .unwrap();
        assert!(program.len() < 180, "{}", program.len());
    }

    #[test]
    fn the_launchers_own_exec_passes_by_its_cookie_only() {
        let mut rules = syscalls(&[(&["execve"], Action::Errno(1)), (&["@default"], Action::Allow)]);
        rules.default_action = Action::Errno(1);
        let plan = plan(&rules, None).unwrap();
        let cookie = 0x1234_5678_9abc_def0;
        let program = compile(
            &plan,
            &CompileOptions {
                notify: false,
                exec_cookie: Some(cookie),
            },
        )
        .unwrap();
        let exec = |arg| {
            run(
                &program,
                &Data {
                    nr: number("execve").unwrap(),
                    arch: ARCH,
                    args: [0, 0, 0, arg, 0, 0],
                },
            )
        };
        assert_eq!(exec(cookie), libc::SECCOMP_RET_ALLOW);
        assert_eq!(exec(cookie ^ 1 << 40), libc::SECCOMP_RET_ERRNO | 1);
        assert_eq!(exec(0), libc::SECCOMP_RET_ERRNO | 1);
    }

    #[test]
    fn a_filter_that_is_too_long_is_an_error() {
        let mut rules = syscalls(&[]);
        for value in 0..2000 {
            rules.rules.push(SyscallRule {
                names: vec!["ioctl".into()],
                args: vec![ArgTest {
                    index: 1,
                    op: ArgOp::Eq,
                    value,
                }],
                action: Action::Allow,
                origin: origin("/x"),
            });
        }
        let plan = plan(&rules, None).unwrap();
        assert!(matches!(
            compile(&plan, &CompileOptions::default()),
            Err(SeccompError::TooLong { .. })
        ));
    }
}
