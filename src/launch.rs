//! From a plan to a running command: arm, clone, map ids, hand over.

use std::ffi::{CString, OsStr};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::child::{self, Armed, Stage};
use crate::error::{Error, ErrorKind};
use crate::layers::cgroup::ArmedCgroup;
use crate::layers::mounts::arm as mount_arm;
use crate::layers::mounts::{Content, RootPlan};
use crate::layers::namespaces::IdMap;
use crate::layers::seccomp::bpf::{CompileOptions, compile};
use crate::layers::{landlock, seccomp};
use crate::plan::Plan;
use crate::profile::model::{NetworkMode, RootAccess, Stream};
use crate::report::model::Report;
use crate::supervise::{self, Running, Streams};
use crate::sys::board::SharedBoard;
use crate::sys::process::{self, CStringArray, Stack};
use crate::sys::{Errno, fd, security};

/// How a run behaves towards its caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 sent to the calling thread go to the command.
    pub forward_signals: bool,
    /// Standard streams that are terminals are replaced by a terminal of the sandbox's own.
    pub terminal: bool,
}

/// Runs a plan to its end.
///
/// # Errors
/// When the command could not be started. Once it has, every end is a report.
pub fn run(plan: &Plan, options: RunOptions) -> Result<Report, Error> {
    let signals = if options.forward_signals {
        Some(supervise::Signals::block()?)
    } else {
        None
    };
    let cgroup = if plan.cgroup.is_empty() {
        None
    } else {
        let armed = ArmedCgroup::arm(&plan.cgroup)
            .map_err(|error| Error::new(ErrorKind::Refused, format!("cgroup: {error}"), error.hint()))?;
        Some(armed)
    };
    let (parent, ours) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|e| Error::failed(format!("cannot make a socket pair: {}", e.desc())))?;
    let mut streams = Streams::open(plan, options.terminal)?;
    let mut armed = arm(plan, ours, cgroup.as_ref(), &streams)?;
    let into = cgroup.as_ref().and_then(ArmedCgroup::clone_into);
    let child = match process::fork(plan.namespaces.clone_flags, into) {
        Ok(None) => child::run_init(&mut armed),
        Ok(Some(child)) => child,
        Err(errno) => return Err(clone_error(errno, plan)),
    };
    // From here on an early return ends init: its channel closes, and it is killed with the guard.
    let mut running = Running {
        child,
        channel: parent,
        cgroup,
        ended: false,
    };
    streams.close_child_side();
    if let Some(ids) = plan.namespaces.ids {
        write_maps(running.child.pid, ids, plan)?;
    }
    if options.forward_signals {
        // After the maps, which an undumpable process could not write for its child. A library's process is its
        // owner's to harden.
        harden_self()?;
    }
    // A peer that is gone is found out by the loop.
    fd::send(running.channel.as_raw_fd(), &[1], &[]).unwrap_or(());
    let report = supervise::supervise(plan, &mut running, streams, signals, &armed.board);
    let board_fault = armed.board.fault();
    drop(armed);
    match report {
        Ok(report) => Ok(report),
        Err(error) => match board_fault {
            Some(raw) => Err(fault_error(plan, raw, error)),
            None => Err(error),
        },
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, Error> {
    CString::new(bytes)
        .map_err(|_| Error::failed(format!("{:?} holds a NUL byte", String::from_utf8_lossy(bytes))))
}

/// For `/proc/self/timens_offsets` (time_namespaces(7)): both clocks read about zero now.
fn time_offsets() -> Result<Vec<u8>, Error> {
    use nix::time::{ClockId, clock_gettime};
    let mut text = String::new();
    for (name, clock) in [
        ("monotonic", ClockId::CLOCK_MONOTONIC),
        ("boottime", ClockId::CLOCK_BOOTTIME),
    ] {
        let now = clock_gettime(clock)
            .map_err(|e| Error::failed(format!("cannot read the clock {name}: {}", e.desc())))?;
        // Whole seconds, so that no clock reads less than nothing, which the kernel refuses.
        text.push_str(&format!("{name} -{} 0\n", now.tv_sec()));
    }
    Ok(text.into_bytes())
}

/// What execvp(3) would try.
fn candidates(plan: &Plan) -> Result<Vec<CString>, Error> {
    let command = plan.command[0].as_bytes();
    if command.contains(&b'/') {
        return Ok(vec![c_string(command)?]);
    }
    let path = plan
        .environment
        .iter()
        .find(|(k, _)| k == "PATH")
        .map_or(OsStr::new("/usr/bin:/bin"), |(_, v)| v);
    path.as_bytes()
        .split(|b| *b == b':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| c_string(&[directory, b"/", command].concat()))
        .collect()
}

fn arm(plan: &Plan, ours: OwnedFd, cgroup: Option<&ArmedCgroup>, streams: &Streams) -> Result<Armed, Error> {
    let fail = |what: &str, errno: Errno| Error::failed(format!("cannot {what}: {}", errno.desc()));
    let mut mounts = None;
    if plan.mounts.applied {
        let mut armed = mount_arm::arm(&plan.mounts)
            .map_err(|e| Error::new(ErrorKind::Failed, e.to_string(), e.hint()))?;
        if armed.trees.len() > crate::layers::mounts::apply::MAX_TREES {
            return Err(Error::failed(format!(
                "{} mounts of the host are too many",
                armed.trees.len()
            )));
        }
        if plan.privileged {
            let idmap = if needs_idmap(plan) {
                Some(idmap_namespace(plan)?)
            } else {
                None
            };
            mount_arm::prepare_as_root(&mut armed, &plan.mounts, idmap.as_ref())
                .map_err(|e| Error::new(ErrorKind::Refused, format!("mounts: {e}"), e.hint()))?;
        }
        mounts = Some(armed);
    }
    let landlock = match &plan.landlock {
        None => None,
        Some(rules) => {
            let ruleset = landlock::arm(rules).map_err(|why| {
                Error::new(
                    ErrorKind::Refused,
                    format!("landlock: {why}"),
                    Some("pass --best-effort landlock".into()),
                )
            })?;
            let paths = rules
                .paths
                .iter()
                .map(|rule| Ok((c_string(rule.path.as_os_str().as_bytes())?, rule.access)))
                .collect::<Result<Vec<_>, Error>>()?;
            Some((ruleset, paths))
        }
    };
    let execve = seccomp::number("execve").unwrap_or(u32::MAX);
    let mut cookie = [0; 8];
    let seccomp = match &plan.seccomp {
        None => None,
        Some(rules) => {
            let gated = rules.decide(execve, &[0; 6]).action != crate::profile::model::Action::Allow;
            if gated {
                // So that the command cannot know it.
                std::fs::File::open("/dev/urandom")
                    .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut cookie))
                    .map_err(|e| Error::failed(format!("cannot read /dev/urandom: {e}")))?;
            }
            let options = CompileOptions {
                notify: true,
                exec_cookie: gated.then(|| u64::from_ne_bytes(cookie)),
            };
            let program = compile(rules, &options)
                .map_err(|e| Error::new(ErrorKind::Failed, e.to_string(), e.hint()))?;
            Some((program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER))
        }
    };
    let cgroup_join = cgroup.map(ArmedCgroup::join_fds).unwrap_or_default();
    let mut keep: Vec<RawFd> = vec![ours.as_raw_fd()];
    keep.extend(&cgroup_join);
    keep.extend(landlock.iter().map(|(ruleset, _)| ruleset.as_raw_fd()));
    keep.extend(streams.child_side.iter().flatten());
    keep.extend(streams.host_terminal.iter().map(AsRawFd::as_raw_fd));
    let trees = mounts.iter().flat_map(|m| &m.trees);
    keep.extend(trees.filter_map(|tree| tree.ready.as_ref().map(AsRawFd::as_raw_fd)));
    keep.sort_unstable();
    let argv = plan
        .command
        .iter()
        .map(|word| c_string(word.as_bytes()))
        .collect::<Result<_, _>>()?;
    let envp = plan
        .environment
        .iter()
        .map(|(key, value)| c_string(&[key.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<_, _>>()?;
    let own_pts = mounts.as_ref().is_some_and(|m| m.own_pts);
    debug_assert!(own_pts || !streams.terminal.contains(&true) || streams.host_terminal.is_some());
    Ok(Armed {
        channel: ours,
        board: SharedBoard::new().map_err(|e| fail("map a page", e))?,
        keep,
        cgroup_join,
        cgroup_namespace: plan.namespaces.cgroup,
        hostname: plan
            .namespaces
            .hostname
            .as_ref()
            .map(|name| c_string(name.as_bytes()))
            .transpose()?,
        loopback: plan.network == NetworkMode::Loopback && plan.namespaces.unshared.contains(&"net"),
        pid_namespace: plan.namespaces.unshared.contains(&"pid"),
        time_offsets: plan.namespaces.time.then(time_offsets).transpose()?,
        keyring: true,
        capabilities: plan.capabilities.clone(),
        trees: vec![-1; mounts.as_ref().map_or(0, |m| m.trees.len())],
        mounts,
        cwd: c_string(plan.cwd.as_os_str().as_bytes())?,
        stdio: streams.child_side,
        terminal: streams.terminal,
        host_terminal: streams.host_terminal.as_ref().map(AsRawFd::as_raw_fd),
        label: plan
            .label
            .as_ref()
            .map(|(file, text)| {
                Ok::<_, Error>((
                    c_string(format!("thread-self/attr/{file}").as_bytes())?,
                    text.clone().into_bytes(),
                ))
            })
            .transpose()?,
        rlimits: plan.rlimits.clone(),
        landlock,
        seccomp,
        exec_cookie: u64::from_ne_bytes(cookie),
        candidates: candidates(plan)?,
        argv: CStringArray::new(argv),
        envp: CStringArray::new(envp),
        stack: Stack::new().map_err(|e| fail("map a stack", e))?,
    })
}

fn needs_idmap(plan: &Plan) -> bool {
    plan.namespaces.outer_uid != plan.caller.0
        && (plan.mounts.entries.iter().any(|e| {
            matches!(
                e.content,
                Content::Bind {
                    caller_owned: true,
                    ..
                } | Content::Overlay { .. }
            )
        }) || matches!(
            plan.mounts.root,
            RootPlan::Directory {
                access: RootAccess::ReadWrite | RootAccess::Overlay,
                ..
            }
        ))
}

/// A user namespace whose map takes the caller's ids on disk to the command's: for idmapped mounts
/// (mount_setattr(2)). A child holds it open until its descriptor is taken.
fn idmap_namespace(plan: &Plan) -> Result<OwnedFd, Error> {
    let fail = |errno: Errno| {
        let error = mount_arm::ArmError::IdmapNamespace { errno };
        Error::new(ErrorKind::Refused, format!("mounts: {error}"), error.hint())
    };
    let (hold, held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(fail)?;
    let child = match process::fork(libc::CLONE_NEWUSER as u64, None).map_err(fail)? {
        None => {
            // Ends when the parent closes its end, or ends itself; our copy of that end would keep us waiting.
            fd::close(held.as_raw_fd());
            fd::read(hold.as_raw_fd(), &mut [0]).unwrap_or(0);
            process::exit_now(0)
        }
        Some(child) => child,
    };
    let ids = IdMap {
        inner_uid: plan.caller.0,
        inner_gid: plan.caller.1,
        outer_uid: plan.namespaces.outer_uid,
        outer_gid: plan.namespaces.outer_gid,
        count: 1,
    };
    let result = write_map_files(child.pid, ids, false).and_then(|()| {
        std::fs::File::open(format!("/proc/{}/ns/user", child.pid))
            .map_err(|e| Error::failed(format!("cannot open /proc/{}/ns/user: {e}", child.pid)))
    });
    drop(held);
    process::wait(child.pid, 0).map_err(fail)?;
    result.map(OwnedFd::from)
}

/// The maps of user_namespaces(7), written from outside.
fn write_maps(pid: i32, ids: IdMap, plan: &Plan) -> Result<(), Error> {
    if !plan.namespaces.id_helper {
        return write_map_files(pid, ids, !plan.privileged);
    }
    let (user, group) = plan.caller;
    let name = nix::unistd::User::from_uid(user.into())
        .ok()
        .flatten()
        .map_or(user.to_string(), |u| u.name);
    for (tool, file, own) in [
        ("newuidmap", "/etc/subuid", user),
        ("newgidmap", "/etc/subgid", group),
    ] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let range = text.lines().find_map(|line| {
            let mut parts = line.split(':');
            let owner = parts.next()?;
            let (start, count): (u32, u32) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            (owner == name || owner == user.to_string()).then_some((start, count))
        });
        let hint = format!("add a line `{name}:100000:65536` to {file}, or set identity.id_count to 1");
        let Some((start, _)) = range.filter(|(_, count)| *count + 1 >= ids.count) else {
            let message = format!("namespaces: {file} gives {name} fewer than {} ids", ids.count - 1);
            return Err(Error::new(ErrorKind::Refused, message, Some(hint)));
        };
        // Our own id becomes 0, the range what follows. By absolute path: PATH is the caller's. (A08)
        let arguments = [pid, 0]
            .map(|n| n.to_string())
            .into_iter()
            .chain([own, 1, 1, start, ids.count - 1].map(|n| n.to_string()));
        let output = Command::new(format!("/usr/bin/{tool}"))
            .args(arguments)
            .env_clear()
            .output()
            .map_err(|e| {
                Error::new(
                    ErrorKind::Refused,
                    format!("namespaces: cannot run {tool}: {e}"),
                    Some("install the uidmap package, or set identity.id_count to 1".into()),
                )
            })?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::new(
                ErrorKind::Refused,
                format!("namespaces: {tool} failed: {why}"),
                Some(hint),
            ));
        }
    }
    Ok(())
}

fn write_map_files(pid: i32, ids: IdMap, deny_setgroups: bool) -> Result<(), Error> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .map_err(|e| {
                let why = e
                    .raw_os_error()
                    .map_or_else(|| e.to_string(), |c| Errno::from_raw(c).desc().to_owned());
                let hint = "unprivileged user namespaces may be restricted here: see `sandbox doctor`";
                Error::new(
                    ErrorKind::Refused,
                    format!("namespaces: cannot write {path}: {why}"),
                    Some(hint.into()),
                )
            })
    };
    if deny_setgroups {
        // user_namespaces(7): else an ordinary user could shed a group that denies him a file.
        write("setgroups", "deny".into())?;
    }
    write(
        "uid_map",
        format!("{} {} {}\n", ids.inner_uid, ids.outer_uid, ids.count),
    )?;
    write(
        "gid_map",
        format!("{} {} {}\n", ids.inner_gid, ids.outer_gid, ids.count),
    )
}

fn clone_error(errno: Errno, plan: &Plan) -> Error {
    let names = plan.namespaces.unshared.join(", ");
    let hint = match errno {
        Errno::ENOSPC => {
            "a limit in /proc/sys/user/max_*_namespaces is reached (often 0): ask root to raise it, or use the profile landlock-only"
        }
        Errno::EPERM => {
            "this kernel or container does not let you make user namespaces: try the profile landlock-only, and see `sandbox doctor`"
        }
        _ => "see `sandbox doctor`",
    };
    Error::new(
        ErrorKind::Refused,
        format!("namespaces: cannot make the {names} namespaces: {}", errno.desc()),
        Some(hint.into()),
    )
}

/// The board's numbers in words.
fn fault_error(plan: &Plan, raw: crate::sys::board::RawFault, otherwise: Error) -> Error {
    let Some(stage) = Stage::from_number(raw.stage) else {
        return otherwise;
    };
    let errno = Errno::from_raw(raw.errno);
    let index = usize::from(raw.index);
    let object = match stage {
        Stage::MountTree | Stage::MountTreeChanged | Stage::Mount => {
            let armed = mount_arm::arm(&plan.mounts).ok();
            let names = armed.map(|a| {
                if stage == Stage::Mount {
                    a.op_names
                } else {
                    a.tree_names
                }
            });
            names
                .and_then(|n| n.into_iter().nth(index))
                .map_or(String::new(), |(name, origin)| {
                    let place = origin
                        .map(|o| plan.rule(&o))
                        .and_then(|r| Some(format!(" ({}:{})", r.file, r.line?)));
                    format!(" {name}{}", place.unwrap_or_default())
                })
        }
        Stage::LandlockRule => plan
            .landlock
            .as_ref()
            .and_then(|l| l.paths.get(index))
            .map_or(String::new(), |rule| format!(" {}", rule.path.display())),
        Stage::Rlimit => plan
            .rlimits
            .get(index)
            .map_or(String::new(), |r| format!(" {}", r.field)),
        Stage::WorkingDirectory => format!(" {}", plan.cwd.display()),
        Stage::Exec => return exec_error(plan, errno),
        _ => String::new(),
    };
    let hint = match stage {
        Stage::WorkingDirectory => Some("it must be visible inside: use --chdir, \"cwd\", or show it with --ro".to_owned()),
        Stage::MountBase | Stage::Mount | Stage::PivotRoot if errno == Errno::EPERM || errno == Errno::EACCES => Some(
            "this kernel or container restricts user namespaces: try the profile landlock-only, and see `sandbox doctor`"
                .to_owned(),
        ),
        Stage::Seccomp if errno == Errno::EBUSY => {
            Some("an outer sandbox already listens to denials: pass --off seccomp to rely on its filter".to_owned())
        }
        _ => Some("see `sandbox doctor` for what this kernel allows".to_owned()),
    };
    Error::new(
        ErrorKind::Refused,
        format!("cannot {}{object}: {}", stage.doing(), errno.desc()),
        hint,
    )
}

/// Why exec failed, in the terms of somebody who sees the host and not the inside.
fn exec_error(plan: &Plan, errno: Errno) -> Error {
    let command = PathBuf::from(&plan.command[0]);
    let shown = command.display();
    let inside: Vec<PathBuf> = candidates(plan)
        .unwrap_or_default()
        .iter()
        .map(|c| PathBuf::from(OsStr::from_bytes(c.as_bytes())))
        .map(|path| {
            if path.is_absolute() {
                path
            } else {
                plan.cwd.join(path)
            }
        })
        .collect();
    let visible = inside
        .iter()
        .find_map(|path| plan.mounts.to_host(path).filter(|host| host.exists()));
    if errno == Errno::ENOENT || errno == Errno::ENOTDIR {
        if let Some(host) = visible {
            // The file is there, so what is missing is what the kernel wanted to start it with.
            let (kind, needed) = match interpreter(&host) {
                Some(found) => found,
                None => ("interpreter", PathBuf::from("?")),
            };
            let hint = plan_hint(&needed);
            let message = format!(
                "cannot execute {shown}: its {kind} {} is not visible inside",
                needed.display()
            );
            return Error::new(ErrorKind::NotFound, message, Some(hint));
        }
        let on_host = on_host(&command);
        return match on_host {
            Some(path) => Error::new(
                ErrorKind::NotFound,
                format!(
                    "cannot find {shown} inside; it is on the host at {}",
                    path.display()
                ),
                Some(plan_hint(&path)),
            ),
            None => Error::new(
                ErrorKind::NotFound,
                format!("cannot find {shown}, neither inside nor on the host"),
                None,
            ),
        };
    }
    let hint = match errno {
        Errno::EACCES => {
            Some("it needs execute permission, and a mount with \"executable\": true".to_owned())
        }
        Errno::ENOEXEC => {
            Some("it is neither a binary of this machine nor a script that starts with #!".to_owned())
        }
        Errno::E2BIG => Some("arguments and environment are too long together".to_owned()),
        _ => None,
    };
    Error::new(
        ErrorKind::NotExecutable,
        format!("cannot execute {shown}: {}", errno.desc()),
        hint,
    )
}

fn plan_hint(path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    format!(
        "show it with --ro {directory}, or with {{\"type\": \"bind\", \"source\": \"{directory}\"}} in \"mounts\""
    )
}

fn on_host(command: &Path) -> Option<PathBuf> {
    if command.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(command).ok().filter(|p| p.exists());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(command))
        .find(|p| p.is_file())
}

/// A script's interpreter, or a binary's loader.
fn interpreter(file: &Path) -> Option<(&'static str, PathBuf)> {
    let mut head = vec![0; 4096];
    let length = std::io::Read::read(&mut std::fs::File::open(file).ok()?, &mut head).ok()?;
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let word = line.split(|b| b.is_ascii_whitespace()).find(|w| !w.is_empty())?;
        return Some(("interpreter", PathBuf::from(OsStr::from_bytes(word))));
    }
    if head.starts_with(b"\x7fELF") {
        let at = head.windows(4).position(|w| w == b"/lib")?;
        let text = head[at..].split(|b| *b == 0).next()?;
        return Some(("loader", PathBuf::from(OsStr::from_bytes(text))));
    }
    None
}

/// A host file as a standard stream, opened with the caller's rights.
pub(crate) fn open_stream(stream: &Stream, plan: &Plan, number: usize) -> Result<Option<OwnedFd>, Error> {
    let path = match stream {
        Stream::Inherit => return Ok(None),
        Stream::Null => PathBuf::from("/dev/null"),
        Stream::File(path) => PathBuf::from(plan.variables.expand(path).map_err(Error::failed)?),
    };
    let mut options = OpenOptions::new();
    if number == 0 {
        options.read(true);
    } else {
        options.write(true).create(true).truncate(true);
    }
    let name = ["stdin", "stdout", "stderr"][number];
    let file = options
        .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(&path)
        .map_err(|e| Error::failed(format!("cannot open {} for {name}: {e}", path.display())))?;
    Ok(Some(file.into()))
}

/// The supervisor must not be readable through /proc by what it runs.
fn harden_self() -> Result<(), Error> {
    security::undumpable()
        .map_err(|e| Error::failed(format!("cannot make the supervisor undumpable: {}", e.desc())))
}

/// A pty on the host's devpts, for a sandbox without one of its own.
pub(crate) fn host_pty() -> Result<(OwnedFd, OwnedFd), Error> {
    let open = || {
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let master = fd::own(fd::openat(fd::CWD, c"/dev/ptmx", flags, 0)?);
        fd::unlock_pty(master.as_fd().as_raw_fd())?;
        let slave = fd::ioctl_int(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            i64::from(flags | libc::O_CLOEXEC),
        )?;
        Ok((master, fd::own(slave)))
    };
    open().map_err(|e: Errno| Error::failed(format!("cannot make a terminal: {}", e.desc())))
}
