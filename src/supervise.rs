//! One epoll loop over everything that can happen while a command runs, and the report at its end.

mod denials;
mod streams;
mod tree;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::child::{MESSAGE_BYTES, Message};
use crate::error::Error;
use crate::layers::cgroup::{ArmedCgroup, CgroupUsage, EventKind};
use crate::plan::Plan;
use crate::profile::model::OnProcessLimit;
use crate::report::model::{
    Completeness, CompletenessState, Outcome, ProfileRef, Report, SCHEMA, Status, Usage, Violation,
};
use crate::sys::board::SharedBoard;
use crate::sys::process::{self, Child, Rusage};
use crate::sys::{Errno, fd};

use denials::Denials;
pub(crate) use streams::Streams;

/// After a forwarded SIGTERM or SIGHUP the command has this long.
const GRACE: Duration = Duration::from_secs(5);
/// How often a tree without a cgroup is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often a counter is read that nobody announces.
const LOOK_REFUSED: Duration = Duration::from_millis(100);

/// The signals that are taken from the calling thread for the command. Unblocked on drop.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Before the clone, so that none is lost between.
    pub(crate) fn block() -> Result<Signals, Error> {
        let fail = |e: Errno| Error::failed(format!("cannot take signals: {}", e.desc()));
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        let before = SigSet::thread_get_mask().map_err(fail)?;
        set.thread_block().map_err(fail)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fail)?;
        Ok(Signals { fd, before })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The mask that was valid before is valid now.
        self.before.thread_set_mask().unwrap_or(());
    }
}

/// A started init and what must not outlive it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) channel: OwnedFd,
    pub(crate) cgroup: Option<ArmedCgroup>,
    pub(crate) ended: bool,
}

impl Running {
    fn kill(&self) {
        // ESRCH: it has ended, which is what is wanted.
        process::pidfd_kill(self.child.pidfd.as_raw_fd(), libc::SIGKILL).unwrap_or(());
    }

    /// Waits for init's end, and with it the end of all in its pid namespace; then nothing is left in the cgroup.
    fn reap(&mut self) -> Rusage {
        self.ended = true;
        let usage = match process::wait(self.child.pid, 0) {
            Ok(Some((_, _, usage))) => usage,
            _ => Rusage::default(),
        };
        if let Some(cgroup) = &self.cgroup {
            // Without a pid namespace somebody may have outlived init.
            cgroup.kill_all().unwrap_or(());
        }
        usage
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            self.reap();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Channel,
    Init,
    Listener,
    Signals,
    Cgroup(u64),
    Stream(u64),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Channel => 0,
            Token::Init => 1,
            Token::Listener => 2,
            Token::Signals => 3,
            Token::Cgroup(index) => 16 + index,
            Token::Stream(index) => 64 + index,
        }
    }

    fn unpack(value: u64) -> Token {
        match value {
            0 => Token::Channel,
            1 => Token::Init,
            2 => Token::Listener,
            3 => Token::Signals,
            16..64 => Token::Cgroup(value - 16),
            other => Token::Stream(other - 64),
        }
    }
}

/// Which limit ended the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    WallTime,
    CpuTime,
    Memory,
    Processes,
    Output,
}

impl Limit {
    fn status(self) -> Status {
        match self {
            Limit::WallTime | Limit::CpuTime => Status::TimeLimit,
            Limit::Memory => Status::MemoryLimit,
            Limit::Processes => Status::ProcessLimit,
            Limit::Output => Status::OutputLimit,
        }
    }

    fn field(self) -> &'static str {
        match self {
            Limit::WallTime => "wall_time",
            Limit::CpuTime => "cpu_time",
            Limit::Memory => "memory",
            Limit::Processes => "processes",
            Limit::Output => "output",
        }
    }
}

struct Supervisor<'a> {
    plan: &'a Plan,
    running: &'a mut Running,
    streams: Streams,
    epoll: Epoll,
    events: Vec<(RawFd, EventKind)>,
    denials: Option<(OwnedFd, Denials)>,
    started_ns: Option<u64>,
    ended: Option<(i32, u64, Rusage)>,
    limit: Option<Limit>,
    grace_ns: Option<u64>,
    interrupts: u32,
    /// Largest figures seen by looking, where no cgroup counts.
    seen: tree::Seen,
    next_look_ns: u64,
    look_memory: bool,
    look_processes: bool,
    look_cpu: bool,
    /// v1 does not announce that a fork was refused.
    look_refused: bool,
}

/// Watches a run to its end.
///
/// # Errors
/// When the command was never started: the board says why.
pub(crate) fn supervise(
    plan: &Plan,
    running: &mut Running,
    streams: Streams,
    signals: Option<Signals>,
    _board: &SharedBoard,
) -> Result<Report, Error> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
        .map_err(|e| Error::failed(format!("cannot make an epoll instance: {}", e.desc())))?;
    let limits = &plan.limits;
    let mut s = Supervisor {
        plan,
        streams,
        epoll,
        events: Vec::new(),
        denials: None,
        started_ns: None,
        ended: None,
        limit: None,
        grace_ns: None,
        interrupts: 0,
        seen: tree::Seen::default(),
        next_look_ns: 0,
        look_memory: limits.memory_bytes.is_some() && !plan.cgroup.limits_memory(),
        look_processes: limits.processes.is_some() && !plan.cgroup.limits_processes(),
        look_cpu: limits.cpu_time.is_some() && !plan.cgroup.accounts_cpu(),
        look_refused: plan.cgroup.limits_processes() && limits.on_process_limit == OnProcessLimit::Kill,
        running,
    };
    s.watch_all(signals.as_ref())?;
    s.turn(signals.as_ref());
    if s.started_ns.is_none() {
        s.running.kill();
        s.running.reap();
        return Err(Error::failed("the sandbox ended before the command was started"));
    }
    Ok(s.finish())
}

impl Supervisor<'_> {
    fn watch(&self, fd: RawFd, token: Token, flags: EpollFlags) -> Result<(), Error> {
        let borrowed = crate::sys::fd::borrow(fd);
        self.epoll
            .add(borrowed, EpollEvent::new(flags, token.pack()))
            .map_err(|e| Error::failed(format!("cannot watch a descriptor: {}", e.desc())))
    }

    fn watch_all(&mut self, signals: Option<&Signals>) -> Result<(), Error> {
        self.watch(
            self.running.channel.as_raw_fd(),
            Token::Channel,
            EpollFlags::EPOLLIN,
        )?;
        self.watch(
            self.running.child.pidfd.as_raw_fd(),
            Token::Init,
            EpollFlags::EPOLLIN,
        )?;
        if let Some(signals) = signals {
            self.watch(
                signals.fd.as_fd().as_raw_fd(),
                Token::Signals,
                EpollFlags::EPOLLIN,
            )?;
        }
        if let Some(cgroup) = &self.running.cgroup {
            let sources: Vec<_> = cgroup.event_fds().collect();
            for (index, (fd, kind, priority)) in (0u64..).zip(sources) {
                // Read once, so that only what happens from now on wakes us.
                if priority {
                    cgroup.acknowledge(fd);
                }
                let flags = if priority {
                    EpollFlags::EPOLLPRI | EpollFlags::EPOLLET
                } else {
                    EpollFlags::EPOLLIN
                };
                self.events.push((fd, kind));
                self.watch(fd, Token::Cgroup(index), flags)?;
            }
        }
        for (index, fd) in self.streams.sources() {
            self.watch(fd, Token::Stream(index), EpollFlags::EPOLLIN)?;
        }
        Ok(())
    }

    /// The loop: until the command has ended, or init has without it.
    fn turn(&mut self, signals: Option<&Signals>) {
        let mut events = [EpollEvent::empty(); 16];
        while self.ended.is_none() {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => {
                    self.running.kill();
                    return;
                }
            };
            // The channel last: what was denied before the end is recorded before the end.
            let mut init_gone = false;
            let mut channel = false;
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Token::Channel => channel = true,
                    Token::Init => init_gone = true,
                    Token::Listener => self.answer(),
                    Token::Signals => self.forward(signals),
                    Token::Cgroup(index) => self.cgroup_event(index),
                    Token::Stream(index) => self.carry(index),
                }
            }
            if channel || init_gone {
                self.hear();
            }
            if init_gone {
                break;
            }
            self.check_limits();
        }
    }

    fn hear(&mut self) {
        loop {
            let mut bytes = [0; MESSAGE_BYTES];
            let mut fds = [-1; fd::MAX_PASSED];
            let channel = self.running.channel.as_raw_fd();
            match fd::receive(channel, &mut bytes, &mut fds, libc::MSG_DONTWAIT) {
                Ok(0) | Err(_) => return,
                Ok(length) => match Message::decode(&bytes[..length]) {
                    Some(Message::Started {
                        listener,
                        terminal,
                        at_ns,
                    }) => {
                        self.started_ns = Some(at_ns);
                        let mut passed = fds.into_iter().filter(|fd| *fd >= 0).map(fd::own);
                        if listener && let Some(fd) = passed.next() {
                            // A fifth of the time for each denial; older kernels do without.
                            crate::sys::seccomp::set_sync_wake_up(fd.as_raw_fd()).unwrap_or(());
                            if self
                                .watch(fd.as_raw_fd(), Token::Listener, EpollFlags::EPOLLIN)
                                .is_err()
                            {
                                self.running.kill();
                            }
                            self.denials = Some((fd, Denials::default()));
                        }
                        if terminal && let Some(master) = passed.next() {
                            self.streams.adopt_master(master);
                        }
                        for (index, fd) in self.streams.start_terminal() {
                            if self.watch(fd, Token::Stream(index), EpollFlags::EPOLLIN).is_err() {
                                self.running.kill();
                            }
                        }
                    }
                    Some(Message::Ended { status, at_ns, usage }) => {
                        self.ended = Some((status, at_ns, usage))
                    }
                    None => {}
                },
            }
        }
    }

    fn answer(&mut self) {
        if let (Some((listener, denials)), Some(filter)) = (&mut self.denials, &self.plan.seccomp) {
            denials.answer(listener.as_raw_fd(), filter, self.plan);
            if denials.hung_up {
                let listener: BorrowedFd<'_> = listener.as_fd();
                // All its tasks are gone: it would be readable for ever.
                self.epoll.delete(listener).unwrap_or(());
            }
        }
    }

    fn forward(&mut self, signals: Option<&Signals>) {
        let Some(signals) = signals else { return };
        while let Ok(Some(info)) = signals.fd.read_signal() {
            let signal = info.ssi_signo.cast_signed();
            if signal == libc::SIGWINCH {
                self.streams.resize();
                continue;
            }
            if signal == libc::SIGINT {
                self.interrupts += 1;
            }
            let again = self.grace_ns.is_some() || self.interrupts > 1;
            if self.started_ns.is_none() || again {
                self.running.kill();
                continue;
            }
            if matches!(signal, libc::SIGTERM | libc::SIGHUP) {
                self.grace_ns = Some(process::monotonic_ns() + as_ns(GRACE));
            }
            let byte = u8::try_from(signal).unwrap_or(9);
            if fd::send(self.running.channel.as_raw_fd(), &[byte], &[]).is_err() {
                self.running.kill();
            }
        }
    }

    fn cgroup_event(&mut self, index: u64) {
        let Some((fd, kind)) = usize::try_from(index)
            .ok()
            .and_then(|i| self.events.get(i))
            .copied()
        else {
            return;
        };
        let Some(cgroup) = &self.running.cgroup else {
            return;
        };
        cgroup.acknowledge(fd);
        let usage = cgroup.usage();
        match kind {
            EventKind::Memory if usage.oom_kills > 0 => self.end_by(Limit::Memory),
            EventKind::Processes
                if usage.process_limit_hits > 0
                    && self.plan.limits.on_process_limit == OnProcessLimit::Kill =>
            {
                self.end_by(Limit::Processes);
            }
            _ => {}
        }
    }

    fn carry(&mut self, index: u64) {
        let limit = self.plan.limits.output_bytes;
        let (exceeded, closed) = self.streams.carry(index, limit);
        if let Some(fd) = closed {
            self.epoll.delete(crate::sys::fd::borrow(fd)).unwrap_or(());
            self.streams.close(index);
        }
        if exceeded {
            self.end_by(Limit::Output);
        }
    }

    fn end_by(&mut self, limit: Limit) {
        if self.limit.is_none() {
            self.limit = Some(limit);
        }
        self.running.kill();
    }

    fn check_limits(&mut self) {
        let now = process::monotonic_ns();
        if self.grace_ns.is_some_and(|deadline| now >= deadline) {
            self.running.kill();
        }
        let Some(started) = self.started_ns else { return };
        let limits = &self.plan.limits;
        if limits
            .wall_time
            .is_some_and(|limit| now - started >= as_ns(limit))
        {
            self.end_by(Limit::WallTime);
            return;
        }
        if let Some(limit) = limits.cpu_time
            && let Some(used) = self.running.cgroup.as_ref().and_then(ArmedCgroup::cpu_ns)
            && used >= as_ns(limit)
        {
            self.end_by(Limit::CpuTime);
            return;
        }
        if self.look_refused && now >= self.next_look_ns {
            self.next_look_ns = now + as_ns(LOOK_REFUSED);
            if self
                .running
                .cgroup
                .as_ref()
                .is_some_and(|c| c.usage().process_limit_hits > 0)
            {
                self.end_by(Limit::Processes);
                return;
            }
        }
        if (self.look_memory || self.look_processes || self.look_cpu) && now >= self.next_look_ns {
            self.next_look_ns = now + as_ns(LOOK);
            let look = tree::look(self.running.child.pid);
            self.seen.note(&look);
            if self.look_memory && limits.memory_bytes.is_some_and(|limit| look.memory_bytes > limit) {
                self.end_by(Limit::Memory);
            } else if self.look_processes
                && limits.on_process_limit == OnProcessLimit::Kill
                && limits.processes.is_some_and(|limit| look.processes >= limit)
            {
                self.end_by(Limit::Processes);
            } else if self.look_cpu && limits.cpu_time.is_some_and(|limit| look.cpu_ns >= as_ns(limit)) {
                self.end_by(Limit::CpuTime);
            }
        }
    }

    /// Until the next thing that time alone brings; for ever when there is none.
    fn timeout(&self) -> EpollTimeout {
        let now = process::monotonic_ns();
        let mut wait: Option<u64> = self.grace_ns.map(|deadline| deadline.saturating_sub(now));
        let mut sooner = |ns: u64| wait = Some(wait.map_or(ns, |w| w.min(ns)));
        if let Some(started) = self.started_ns {
            let limits = &self.plan.limits;
            if let Some(limit) = limits.wall_time {
                sooner((started + as_ns(limit)).saturating_sub(now));
            }
            if let Some(limit) = limits.cpu_time
                && let Some(used) = self.running.cgroup.as_ref().and_then(ArmedCgroup::cpu_ns)
            {
                // With n CPUs the rest can be used up n times as fast.
                let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
                sooner(as_ns(limit).saturating_sub(used) / cpus);
            }
            if self.look_memory || self.look_processes || self.look_cpu || self.look_refused {
                sooner(self.next_look_ns.saturating_sub(now));
            }
        }
        match wait {
            None => EpollTimeout::NONE,
            Some(ns) => {
                let ms = ns.div_ceil(1_000_000).min(60_000);
                EpollTimeout::from(u16::try_from(ms).unwrap_or(60_000))
            }
        }
    }

    fn finish(mut self) -> Report {
        // Figures before the end of the groups; the kill of what is left is under way in the kernel meanwhile.
        if self.ended.is_none() {
            self.running.kill();
        }
        let usage_of_init = self.running.reap();
        self.hear();
        if let Some((listener, denials)) = &mut self.denials
            && let Some(filter) = &self.plan.seccomp
        {
            denials.answer(listener.as_raw_fd(), filter, self.plan);
        }
        let exceeded = self.streams.drain(self.plan.limits.output_bytes);
        if exceeded && self.limit.is_none() {
            self.limit = Some(Limit::Output);
        }
        let end_ns = self.ended.map_or_else(process::monotonic_ns, |(_, at, _)| at);
        let counted = self.running.cgroup.as_ref().map(ArmedCgroup::usage);
        self.late_verdict(counted);
        let usage = self.usage(counted, usage_of_init, end_ns);
        let outcome = self.outcome();
        let (mut violations, completeness) = match self.denials.take() {
            Some((_, denials)) => denials.into_report(),
            None => (
                Vec::new(),
                Completeness {
                    source: "seccomp".into(),
                    state: CompletenessState::None,
                    lost: None,
                },
            ),
        };
        violations.extend(self.limit.map(|limit| self.limit_violation(limit)));
        if let Some(cgroup) = self.running.cgroup.take()
            && let Err(error) = cgroup.remove()
        {
            violations.push(Violation {
                hint: Some(error.to_string()),
                ..denials::empty("cgroup")
            });
        }
        Report {
            schema: SCHEMA.into(),
            command: self
                .plan
                .command
                .iter()
                .map(|w| w.to_string_lossy().into_owned())
                .collect(),
            profile: ProfileRef {
                name: self.plan.profile.clone(),
                sha256: self.plan.sha256.clone(),
            },
            outcome,
            usage,
            layers: self.plan.layers.clone(),
            violations,
            completeness: vec![
                completeness,
                Completeness {
                    source: "limits".into(),
                    state: CompletenessState::Exact,
                    lost: None,
                },
            ],
        }
    }

    /// The kernel's kill can be known before its event is.
    fn late_verdict(&mut self, counted: Option<CgroupUsage>) {
        if self.limit.is_some() {
            return;
        }
        let Some(counted) = counted else { return };
        if counted.oom_kills > 0 {
            self.limit = Some(Limit::Memory);
        } else if counted.process_limit_hits > 0 && self.plan.limits.on_process_limit == OnProcessLimit::Kill
        {
            self.limit = Some(Limit::Processes);
        } else if let (Some(limit), Some(used)) = (self.plan.limits.cpu_time, counted.cpu_ns)
            && used >= as_ns(limit)
        {
            self.limit = Some(Limit::CpuTime);
        }
    }

    fn usage(&self, counted: Option<CgroupUsage>, init: Rusage, end_ns: u64) -> Usage {
        let counted = counted.unwrap_or_default();
        let us = |ns: u64| ns / 1000;
        Usage {
            wall_time_us: us(end_ns.saturating_sub(self.started_ns.unwrap_or(end_ns))),
            cpu_time_us: counted
                .cpu_ns
                .map(us)
                .or(Some((init.user_us + init.system_us).max(us(self.seen.cpu_ns)))),
            user_time_us: counted.user_ns.map(us).or(Some(init.user_us)),
            system_time_us: counted.system_ns.map(us).or(Some(init.system_us)),
            memory_peak_bytes: counted
                .memory_peak
                .or_else(|| {
                    self.ended
                        .map(|(_, _, usage)| usage.max_rss_bytes.max(self.seen.memory_bytes))
                })
                .or(Some(self.seen.memory_bytes)),
            processes_peak: counted
                .pids_peak
                .or((self.seen.processes > 0).then_some(self.seen.processes)),
            output_bytes: self.streams.output_bytes(),
            major_faults: Some(init.major_faults),
            context_switches: Some(init.context_switches),
            source: if counted.cpu_ns.is_some() {
                "cgroup"
            } else {
                "estimate"
            }
            .into(),
        }
    }

    fn outcome(&self) -> Outcome {
        let status = self.ended.map(|(status, ..)| status);
        let (exit_code, signal) = match status {
            Some(status) if libc::WIFEXITED(status) => (Some(libc::WEXITSTATUS(status)), None),
            Some(status) if libc::WIFSIGNALED(status) => (None, Some(libc::WTERMSIG(status))),
            // We ended it.
            _ => (None, Some(libc::SIGKILL)),
        };
        let signal = signal.map(|number| {
            Signal::try_from(number).map_or_else(
                |_| format!("signal {number}"),
                |signal| signal.as_str().to_owned(),
            )
        });
        Outcome {
            status: match (self.limit, &signal) {
                (Some(limit), _) => limit.status(),
                (None, Some(_)) => Status::Signaled,
                (None, None) => Status::Exited,
            },
            exit_code,
            signal,
            limit: self.limit.map(|limit| limit.field().into()),
            message: None,
            hint: None,
        }
    }

    fn limit_violation(&self, limit: Limit) -> Violation {
        let layer = match limit {
            Limit::Memory | Limit::Processes => "cgroup",
            Limit::WallTime | Limit::CpuTime | Limit::Output => "rlimits",
        };
        let origin = self.plan.limits.origins.get(limit.field());
        Violation {
            rule: origin.map(|origin| self.plan.rule(origin)),
            hint: Some(format!("raise \"limits\": {{\"{}\": …}}", limit.field())),
            ..denials::empty(layer)
        }
    }
}

fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}
