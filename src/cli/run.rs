//! `sandbox run`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use sandbox::error::{Error, ErrorKind};
use sandbox::host::{Host, RealFiles};
use sandbox::profile::load::{Search, layer, load};
use sandbox::profile::model::{LayerMode, Mount, MountKind, Origin, Profile, Stream};
use sandbox::profile::units::{parse_duration, parse_size};
use sandbox::report::model::{Report, Status};
use sandbox::{Plan, RunOptions};

use super::args::Run;
use super::{fail, print};

/// Where the report goes; opened before anything runs, with the caller's rights and no link followed. (G12)
enum Sink {
    None,
    Stdout,
    File(File),
}

pub(crate) fn run(options: Run) -> u8 {
    match prepare(&options) {
        Ok(None) => 0,
        Ok(Some((plan, sink))) => launch(&options, &plan, sink),
        Err(error) => {
            // A report of a refusal is a report too, if it can be had.
            let report = sandbox::report::of_error(&options.command, &options.profile, &error);
            let written = sink(&options).and_then(|sink| write(sink, &report));
            fail(&error.message, error.hint.as_deref());
            written.map_or_else(|why| fail(&why, None), |()| error.exit_code())
        }
    }
}

fn sink(options: &Run) -> Result<Sink, String> {
    if let Some(number) = options.report_fd {
        let path = format!("/proc/self/fd/{number}");
        let copy = nix::unistd::dup(
            sandbox::host::descriptor(number).ok_or(format!("--report-fd {number}: it is not open"))?,
        );
        return copy
            .map(|fd| Sink::File(fd.into()))
            .map_err(|e| format!("--report-fd {path}: {}", e.desc()));
    }
    match &options.report {
        None => Ok(Sink::None),
        Some(path) if path.as_os_str() == "-" => Ok(Sink::Stdout),
        Some(path) => File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .map(Sink::File)
            .map_err(|e| format!("cannot open the report file {}: {}", path.display(), why(&e))),
    }
}

fn write(sink: Sink, report: &Report) -> Result<(), String> {
    let text =
        serde_json::to_string_pretty(report).map_err(|e| format!("cannot render the report: {e}"))? + "\n";
    match sink {
        Sink::None => Ok(()),
        Sink::Stdout => match print(text.as_bytes()) {
            0 => Ok(()),
            _ => Err("the report was not written".into()),
        },
        Sink::File(mut file) => {
            let number = file.as_raw_fd();
            file.write_all(text.as_bytes())
                .map_err(|e| format!("cannot write the report (descriptor {number}): {}", why(&e)))
        }
    }
}

fn prepare(options: &Run) -> Result<Option<(Plan, Sink)>, Error> {
    let mut profile = load(&options.profile, &Search::of_caller())?;
    let failed = |message: String| Error {
        kind: ErrorKind::Failed,
        message,
        hint: None,
    };
    let host = Host::probe().map_err(failed)?;
    apply(options, &mut profile, &host).map_err(failed)?;
    let plan = Plan::new(&profile, &host, &RealFiles, options.command.clone(), 0)?;
    if options.dry_run {
        let text =
            serde_json::to_string_pretty(&plan).map_err(|e| failed(format!("cannot print the plan: {e}")))?;
        print(format!("{text}\n").as_bytes());
        return Ok(None);
    }
    let sink = sink(options).map_err(failed)?;
    Ok(Some((plan, sink)))
}

/// Options are lines added to the profile.
fn apply(options: &Run, profile: &mut Profile, host: &Host) -> Result<(), String> {
    let origin = |name: &str| Origin {
        file: Arc::from(format!("option:--{name}")),
        pointer: String::new(),
    };
    for (name, list, writable) in [("ro", &options.ro, false), ("rw", &options.rw, true)] {
        for text in list {
            let (source, destination) = match text.split_once(':') {
                Some((source, destination)) => (source.to_owned(), Some(destination.to_owned())),
                None => (text.clone(), None),
            };
            let source = host.cwd.join(source).to_string_lossy().into_owned();
            let destination = destination.unwrap_or_else(|| source.clone());
            if !destination.starts_with('/') {
                return Err(format!("--{name} {text}: the destination is not absolute"));
            }
            profile.mounts.retain(|m| m.destination != destination);
            let kind = MountKind::Bind {
                source,
                writable,
                executable: true,
                optional: false,
                caller_owned: true,
            };
            profile.mounts.push(Mount {
                destination,
                kind,
                origin: origin(name),
            });
        }
    }
    for destination in &options.tmpfs {
        if !destination.starts_with('/') {
            return Err(format!("--tmpfs {destination}: it is not absolute"));
        }
        profile.mounts.retain(|m| m.destination != *destination);
        let kind = MountKind::Tmpfs {
            size_bytes: None,
            inodes: None,
            mode: 0o1777,
            executable: true,
        };
        profile.mounts.push(Mount {
            destination: destination.clone(),
            kind,
            origin: origin("tmpfs"),
        });
    }
    for text in &options.env {
        match text.split_once('=') {
            Some((name, value)) => {
                // The value is data: nothing in it is a variable of ours.
                profile
                    .environment
                    .set
                    .insert(name.into(), value.replace("${", "$${"));
            }
            None => {
                profile.environment.set.remove(text);
                profile.environment.keep.push(text.clone());
            }
        }
    }
    if let Some(directory) = &options.chdir {
        profile.cwd.clone_from(directory);
    }
    let limits = &mut profile.limits;
    let mut note = |field: &str, option: &str| {
        limits.origins.insert(field.into(), origin(option));
    };
    if let Some(text) = &options.memory {
        note("memory", "memory");
        limits.memory_bytes = Some(parse_size(text).map_err(|e| format!("--memory: {e}"))?);
    }
    let mut note = |field: &str, option: &str| {
        limits.origins.insert(field.into(), origin(option));
    };
    if let Some(text) = &options.cpu_time {
        note("cpu_time", "cpu-time");
        limits.cpu_time = Some(parse_duration(text).map_err(|e| format!("--cpu-time: {e}"))?);
    }
    if let Some(text) = &options.wall_time {
        limits.origins.insert("wall_time".into(), origin("wall-time"));
        limits.wall_time = Some(parse_duration(text).map_err(|e| format!("--wall-time: {e}"))?);
    }
    if let Some(number) = options.processes {
        limits.origins.insert("processes".into(), origin("processes"));
        limits.processes = Some(number);
    }
    if let Some(number) = options.cpus {
        if number.is_nan() || number <= 0.0 {
            return Err(format!("--cpus {number}: it must be more than 0"));
        }
        limits.cpus = Some(number);
    }
    if let Some(text) = &options.output_limit {
        limits.origins.insert("output".into(), origin("output-limit"));
        limits.output_bytes = Some(parse_size(text).map_err(|e| format!("--output-limit: {e}"))?);
    }
    let file = |path: &String| Stream::File(host.cwd.join(path).to_string_lossy().replace("${", "$${"));
    for (from, to) in [
        (&options.stdin, &mut profile.stdio.stdin),
        (&options.stdout, &mut profile.stdio.stdout),
        (&options.stderr, &mut profile.stdio.stderr),
    ] {
        if let Some(path) = from {
            *to = file(path);
        }
    }
    for (names, mode) in [
        (&options.best_effort, LayerMode::BestEffort),
        (&options.require, LayerMode::Required),
        (&options.off, LayerMode::Off),
    ] {
        for name in names {
            let layer = layer(name).map_err(|hint| format!("there is no layer {name}; {hint}"))?;
            profile.layers.modes.insert(layer, mode);
        }
    }
    Ok(())
}

fn launch(options: &Run, plan: &Plan, sink: Sink) -> u8 {
    let report = match sandbox::run(
        plan,
        RunOptions {
            forward_signals: true,
            terminal: true,
        },
    ) {
        Ok(report) => report,
        Err(error) => {
            let report = sandbox::report::of_error(&options.command as &[OsString], &options.profile, &error);
            fail(&error.message, error.hint.as_deref());
            return write(sink, &report).map_or_else(|why| fail(&why, None), |()| error.exit_code());
        }
    };
    if !options.quiet {
        let summary = sandbox::report::summary(&report, options.verbose);
        // Stderr may be gone; the report is the contract.
        std::io::stderr().write_all(summary.as_bytes()).unwrap_or(());
    }
    let code = exit_code(&report);
    write(sink, &report).map_or_else(
        |why| {
            fail(
                &why,
                Some("the command itself has ended; run again to have its report"),
            )
        },
        |()| code,
    )
}

fn exit_code(report: &Report) -> u8 {
    let outcome = &report.outcome;
    if outcome.status == Status::TimeLimit {
        return 124;
    }
    if let Some(signal) = &outcome.signal {
        let number = signal.parse::<nix::sys::signal::Signal>().map_or(9, |s| s as i32);
        return u8::try_from(128 + number).unwrap_or(255);
    }
    match (outcome.status, outcome.exit_code) {
        // A limit ended it although its last words were an exit.
        (Status::MemoryLimit | Status::ProcessLimit | Status::OutputLimit, _) => 137,
        (_, Some(code)) => u8::try_from(code).unwrap_or(255),
        _ => 125,
    }
}

/// An I/O error in words, without its number.
fn why(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |code| nix::errno::Errno::from_raw(code).desc().to_owned(),
    )
}
