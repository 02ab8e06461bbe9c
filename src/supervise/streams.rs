//! Standard streams: passed straight through, or carried by us when output is limited or a terminal is involved.

use std::io::IsTerminal;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::termios::{self, SetArg, Termios};

use crate::error::Error;
use crate::plan::Plan;
use crate::profile::model::Stream;
use crate::sys::{Errno, fd};

const STDIN: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const MASTER: u64 = 3;

/// The streams of a run.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What goes to 0, 1, 2 of the command; `None` is the inherited one.
    pub(crate) child_side: [Option<RawFd>; 3],
    /// Which of them become a terminal.
    pub(crate) terminal: [bool; 3],
    /// A slave on the host's devpts.
    pub(crate) host_terminal: Option<OwnedFd>,
    owned: Vec<OwnedFd>,
    /// Read ends of stdout and stderr when output is counted.
    pumps: [Option<OwnedFd>; 3],
    /// Where they lead.
    targets: [Option<OwnedFd>; 3],
    master: Option<OwnedFd>,
    saved: Option<Termios>,
    read_stdin: bool,
    written: u64,
    counting: bool,
}

impl Streams {
    pub(crate) fn open(plan: &Plan, terminals: bool) -> Result<Streams, Error> {
        let mut streams = Streams {
            child_side: [None; 3],
            terminal: [false; 3],
            host_terminal: None,
            owned: Vec::new(),
            pumps: [None, None, None],
            targets: [None, None, None],
            master: None,
            saved: None,
            read_stdin: false,
            written: 0,
            counting: plan.limits.output_bytes.is_some(),
        };
        let is_terminal = [
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal(),
        ];
        for (number, stream) in [&plan.stdio.stdin, &plan.stdio.stdout, &plan.stdio.stderr]
            .into_iter()
            .enumerate()
        {
            let file = crate::launch::open_stream(stream, plan, number)?;
            if *stream == Stream::Inherit && is_terminal[number] {
                if terminals {
                    streams.terminal[number] = true;
                    continue;
                }
                let why = "it is a terminal, which a command could take over";
                return Err(Error::failed(format!(
                    "cannot pass descriptor {number} on: {why}"
                )));
            }
            if number > 0 && streams.counting {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(|e| Error::failed(format!("cannot make a pipe: {}", e.desc())))?;
                streams.child_side[number] = Some(write.as_raw_fd());
                streams.owned.push(write);
                streams.pumps[number] = Some(read);
                streams.targets[number] = file;
            } else if let Some(file) = file {
                streams.child_side[number] = Some(file.as_raw_fd());
                streams.owned.push(file);
            }
        }
        let own_pts = plan.mounts.applied
            && plan
                .mounts
                .entries
                .iter()
                .any(|e| e.destination == std::path::Path::new("/dev"));
        if streams.terminal.contains(&true) && !own_pts {
            let (master, slave) = crate::launch::host_pty()?;
            streams.master = Some(master);
            streams.host_terminal = Some(slave);
        }
        Ok(streams)
    }

    /// The command has its own copies.
    pub(crate) fn close_child_side(&mut self) {
        self.owned.clear();
        self.host_terminal = None;
    }

    /// What is read from the start.
    pub(super) fn sources(&self) -> Vec<(u64, RawFd)> {
        [(STDOUT, 1), (STDERR, 2)]
            .into_iter()
            .filter_map(|(token, n): (u64, usize)| Some((token, self.pumps[n].as_ref()?.as_raw_fd())))
            .collect()
    }

    pub(super) fn adopt_master(&mut self, master: OwnedFd) {
        self.master = Some(master);
    }

    /// Puts the caller's terminal into raw mode and says what is read from now on.
    pub(super) fn start_terminal(&mut self) -> Vec<(u64, RawFd)> {
        let Some(master) = &self.master else {
            return Vec::new();
        };
        let mut sources = vec![(MASTER, master.as_raw_fd())];
        if let Some(number) = self.terminal.iter().position(|t| *t) {
            let from = i32::try_from(number).unwrap_or(0);
            // Without a size the command sees 0 by 0, which programs take for unknown.
            fd::copy_window_size(from, master.as_raw_fd()).unwrap_or(());
        }
        let stdin = std::io::stdin();
        let foreground = || nix::unistd::tcgetpgrp(&stdin).is_ok_and(|group| group == nix::unistd::getpgrp());
        if self.terminal[0] && foreground() {
            if let Ok(mode) = termios::tcgetattr(&stdin) {
                let mut raw = mode.clone();
                termios::cfmakeraw(&mut raw);
                if termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).is_ok() {
                    self.saved = Some(mode);
                }
            }
            self.read_stdin = true;
            sources.push((STDIN, 0));
        }
        sources
    }

    pub(super) fn resize(&self) {
        if let Some(master) = &self.master
            && let Some(number) = self.terminal.iter().position(|t| *t)
        {
            fd::copy_window_size(i32::try_from(number).unwrap_or(0), master.as_raw_fd()).unwrap_or(());
        }
    }

    fn target(&self, number: usize) -> RawFd {
        self.targets[number]
            .as_ref()
            .map_or_else(|| i32::try_from(number).unwrap_or(1), AsRawFd::as_raw_fd)
    }

    /// Carries what is there. Says whether the limit is exceeded, and which descriptor has come to its end.
    pub(super) fn carry(&mut self, index: u64, limit: Option<u64>) -> (bool, Option<RawFd>) {
        let (from, to, counted) = match index {
            STDIN => (0, self.master.as_ref().map(AsRawFd::as_raw_fd), false),
            MASTER => {
                let number = (1..3).find(|n| self.terminal[*n]).unwrap_or(1);
                (
                    self.master.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                    Some(self.target(number)),
                    true,
                )
            }
            n => {
                let n = usize::try_from(n).unwrap_or(1);
                (
                    self.pumps[n].as_ref().map_or(-1, AsRawFd::as_raw_fd),
                    Some(self.target(n)),
                    true,
                )
            }
        };
        let Some(to) = to else { return (false, Some(from)) };
        let mut buffer = [0; 65_536];
        let length = match fd::read(from, &mut buffer) {
            Ok(0) => return (false, Some(from)),
            Ok(length) => length,
            Err(Errno::EAGAIN) => return (false, None),
            // EIO: nobody has the terminal open any more.
            Err(_) => return (false, Some(from)),
        };
        let mut pass = length;
        let mut exceeded = false;
        if counted {
            let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.written));
            if length as u64 > room {
                pass = usize::try_from(room).unwrap_or(0);
                exceeded = true;
            }
            self.written += pass as u64;
        }
        // A reader that is gone: the command is told by a closed pipe.
        let closed = fd::write_all(to, &buffer[..pass]).is_err();
        (exceeded, (closed && counted).then_some(from))
    }

    pub(super) fn close(&mut self, index: u64) {
        match index {
            STDIN => self.read_stdin = false,
            MASTER => self.master = None,
            n => self.pumps[usize::try_from(n).unwrap_or(1)] = None,
        }
    }

    /// What is left in the pipes after the end of all writers.
    pub(super) fn drain(&mut self, limit: Option<u64>) -> bool {
        let mut exceeded = false;
        for index in [STDOUT, STDERR, MASTER] {
            while !exceeded && self.is_open(index) && self.waiting(index) {
                let (over, closed) = self.carry(index, limit);
                exceeded |= over;
                if closed.is_some() {
                    self.close(index);
                }
            }
        }
        exceeded
    }

    fn is_open(&self, index: u64) -> bool {
        match index {
            MASTER => self.master.is_some(),
            n => self.pumps[usize::try_from(n).unwrap_or(1)].is_some(),
        }
    }

    fn waiting(&self, index: u64) -> bool {
        let fd = match index {
            MASTER => self.master.as_ref(),
            n => self.pumps[usize::try_from(n).unwrap_or(1)].as_ref(),
        };
        let Some(fd) = fd else { return false };
        use std::os::fd::AsFd;
        let mut fds = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    pub(super) fn output_bytes(&self) -> Option<u64> {
        (self.counting || self.terminal[1] || self.terminal[2]).then_some(self.written)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(mode) = &self.saved {
            // The terminal may be gone; then there is nothing to put back.
            termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, mode).unwrap_or(());
        }
    }
}
