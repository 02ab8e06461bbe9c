//! Real launches of the built binary: what works, what is denied, how each limit ends a run. As the user who runs
//! the tests and, when that is root, as an ordinary user too.

#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Who starts the sandbox.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Caller {
    Tester,
    Nobody,
}

fn callers() -> Vec<Caller> {
    if nix::unistd::geteuid().is_root() {
        vec![Caller::Tester, Caller::Nobody]
    } else {
        vec![Caller::Tester]
    }
}

struct Bench {
    directory: tempfile::TempDir,
    caller: Caller,
}

impl Bench {
    /// A directory of the caller's own with a copy of the binary that anyone can reach.
    fn new(caller: Caller) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(directory.path().join("work")).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_sandbox"), directory.path().join("sandbox")).unwrap();
        if caller == Caller::Nobody {
            let nobody = Some(65_534);
            std::os::unix::fs::chown(directory.path().join("work"), nobody, nobody).unwrap();
        }
        Bench { directory, caller }
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("sandbox"));
        command
            .args(arguments)
            .current_dir(self.work())
            .stdin(Stdio::null());
        command.env("HOME", self.work());
        if self.caller == Caller::Nobody {
            command.uid(65_534).gid(65_534);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn report(&self, arguments: &[&str]) -> (Output, serde_json::Value) {
        let path = self.work().join("report.json");
        let mut all = vec!["run", "--report", path.to_str().unwrap()];
        all.extend(arguments);
        let output = self.run(&all);
        let text = std::fs::read_to_string(path).unwrap();
        (output, serde_json::from_str(&text).unwrap())
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_sees_a_room_of_its_own() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let script = "id -u; ls -d /root /home/* 2>/dev/null; grep -c . /proc/self/mountinfo; hostname; ls /proc | grep -c '^[0-9]'";
        let output = bench.run(&["run", "default", "--", "sh", "-c", script]);
        let text = stdout(&output);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1000", "{caller:?} {}", stderr(&output));
        assert_eq!(lines[1], "/home/sandbox");
        assert_eq!(lines[3], "sandbox");
        assert!(lines[4].parse::<u32>().unwrap() < 8, "{text}");
    }
}

#[test]
fn nothing_of_privilege_is_left() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let output = bench.run(&["run", "default", "--", "cat", "/proc/self/status"]);
        let text = stdout(&output);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                text.contains(&format!("{set}:\t0000000000000000")),
                "{caller:?} {set}\n{text}"
            );
        }
        assert!(text.contains("NoNewPrivs:\t1"));
        assert!(text.contains("Seccomp:\t2"));
    }
}

#[test]
fn a_root_callers_command_is_not_host_root_and_its_files_are_the_callers() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let output = bench.run(&["run", "build", "--", "sh", "-c", "echo x > made && cat made"]);
        assert_eq!(stdout(&output), "x\n", "{caller:?} {}", stderr(&output));
        let owner =
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(bench.work().join("made")).unwrap());
        let expected = if caller == Caller::Nobody {
            65_534
        } else {
            nix::unistd::geteuid().as_raw()
        };
        assert_eq!(owner, expected);
        let (_, report) = bench.report(&["default", "--", "true"]);
        let detail = report["layers"][3]["detail"].as_str().unwrap().to_owned();
        assert!(!detail.ends_with("host uid 0"), "{detail}");
    }
}

#[test]
fn the_current_directory_is_read_only_under_default_and_writable_without_a_sandbox() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let output = bench.run(&["run", "default", "--", "sh", "-c", "echo x > made"]);
        assert!(
            stderr(&output).contains("Read-only file system"),
            "{caller:?} {}",
            stderr(&output)
        );
        assert!(!bench.work().join("made").exists());
        std::fs::write(bench.work().join("made"), "x").unwrap();
    }
}

#[test]
fn a_denied_call_is_reported_with_its_profile_line_and_allowed_by_the_hint() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let (output, report) = bench.report(&["default", "--", "unshare", "-U", "true"]);
        assert_eq!(output.status.code(), Some(1), "{caller:?}");
        let violation = &report["violations"][0];
        assert_eq!(violation["layer"], "seccomp");
        assert_eq!(violation["syscall"], "unshare");
        assert_eq!(violation["errno"], "EPERM");
        assert!(violation["rule"]["line"].as_u64().is_some(), "{violation}");
        let profile = bench.work().join("p.json");
        std::fs::write(
            &profile,
            r#"{"extends": "default", "syscalls": {"allow": ["unshare"]}}"#,
        )
        .unwrap();
        if caller == Caller::Nobody {
            std::os::unix::fs::chown(&profile, Some(65_534), None).unwrap();
        }
        let (output, report) = bench.report(&["./p.json", "--", "unshare", "-U", "true"]);
        assert_eq!(output.status.code(), Some(0), "{caller:?} {}", stderr(&output));
        assert_eq!(report["violations"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn each_limit_ends_a_run_with_its_status() {
    let cases: [(&[&str], &str, &str, i32); 4] = [
        (
            &["--wall-time", "200ms", "default", "--", "sleep", "60"],
            "time_limit",
            "wall_time",
            124,
        ),
        (
            &[
                "--cpu-time",
                "200ms",
                "default",
                "--",
                "sh",
                "-c",
                "while :; do :; done",
            ],
            "time_limit",
            "cpu_time",
            124,
        ),
        (
            &["--output-limit", "64KiB", "default", "--", "yes"],
            "output_limit",
            "output",
            137,
        ),
        (
            &[
                "--processes",
                "20",
                "default",
                "--",
                "bash",
                "-c",
                "f(){ f|f& }; f 2>/dev/null; sleep 60",
            ],
            "process_limit",
            "processes",
            137,
        ),
    ];
    for caller in callers() {
        for (arguments, status, limit, code) in cases {
            let bench = Bench::new(caller);
            let (output, report) = bench.report(arguments);
            assert_eq!(
                report["outcome"]["status"], status,
                "{caller:?} {arguments:?} {report}"
            );
            assert_eq!(report["outcome"]["limit"], limit);
            assert_eq!(output.status.code(), Some(code), "{caller:?} {arguments:?}");
        }
    }
}

#[test]
fn layers_hold_when_another_is_off() {
    for caller in callers() {
        let bench = Bench::new(caller);
        for off in ["seccomp", "landlock", "capabilities", "cgroup", "rlimits"] {
            let (output, report) =
                bench.report(&["--off", off, "default", "--", "sh", "-c", "echo x > made"]);
            assert_ne!(output.status.code(), Some(0), "{caller:?} without {off}");
            assert!(!bench.work().join("made").exists(), "{caller:?} without {off}");
            let layers = report["layers"].as_array().unwrap();
            let layer = layers.iter().find(|l| l["layer"] == off).unwrap();
            assert_eq!(layer["state"], "off");
        }
        // Landlock alone holds what the mounts do otherwise.
        let output = bench.run(&["run", "landlock-only", "--", "sh", "-c", "echo x > ../made"]);
        assert!(
            stderr(&output).contains("Permission denied"),
            "{caller:?} {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_required_layer_that_is_missing_refuses_before_exec() {
    let bench = Bench::new(Caller::Tester);
    let profile = bench.work().join("p.json");
    std::fs::write(
        &profile,
        r#"{"extends": "default", "selinux": {"label": "u:r:box_t"}}"#,
    )
    .unwrap();
    let active = std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|l| l.contains("selinux"));
    if active {
        eprintln!("SKIP a_required_layer_that_is_missing_refuses_before_exec: SELinux is active here");
        return;
    }
    let (output, report) = bench.report(&["./p.json", "--", "sh", "-c", "echo started"]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(stdout(&output), "");
    assert_eq!(report["outcome"]["status"], "refused");
    let (output, report) = bench.report(&["--best-effort", "selinux", "./p.json", "--", "echo", "started"]);
    assert_eq!(stdout(&output), "started\n");
    assert_eq!(report["layers"][8]["state"], "unavailable");
}

#[test]
fn exit_codes_are_the_commands_own_or_say_why_it_did_not_start() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let code = |arguments: &[&str]| bench.run(arguments).status.code();
        assert_eq!(code(&["run", "default", "--", "sh", "-c", "exit 37"]), Some(37));
        assert_eq!(
            code(&["run", "default", "--", "sh", "-c", "kill -SEGV $$"]),
            Some(139)
        );
        assert_eq!(code(&["run", "default", "--", "no-such-command"]), Some(127));
        assert_eq!(code(&["run", "default", "--", "/etc"]), Some(126));
        assert_eq!(code(&["run", "default", "--", ""]), Some(125));
        assert_eq!(code(&["run", "no-such-profile", "--", "true"]), Some(125));
        assert_eq!(code(&["run", "default", "--", "--privileged"]), Some(127));
    }
}

#[test]
fn descriptors_and_variables_of_the_caller_stay_outside() {
    let bench = Bench::new(Caller::Tester);
    let script = format!(
        "exec 9</etc/hostname; {} run default -- sh -c 'ls /proc/self/fd; env'",
        bench.directory.path().join("sandbox").display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(bench.work())
        .env("SECRET_TOKEN", "x")
        .env("LD_PRELOAD", "/none.so")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(!text.lines().any(|line| line == "9"), "{text}");
    assert!(
        !text.contains("SECRET_TOKEN") && !text.contains("LD_PRELOAD"),
        "{text}"
    );
}

#[test]
fn a_killed_supervisor_leaves_no_process() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let mark = format!("{}", 100_000 + std::process::id());
        let mut child = bench
            .command(&["run", "default", "--", "sleep", &mark])
            .spawn()
            .unwrap();
        let alive = || {
            let list = Command::new("pgrep")
                .args(["-f", &format!("^sleep {mark}")])
                .output()
                .unwrap();
            !list.stdout.is_empty()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !alive() {
            assert!(Instant::now() < deadline, "{caller:?}: the command did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while alive() {
            assert!(
                Instant::now() < deadline,
                "{caller:?}: the command outlived its supervisor"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_background_process_does_not_outlive_the_command() {
    let bench = Bench::new(Caller::Tester);
    let started = Instant::now();
    let output = bench.run(&["run", "default", "--", "sh", "-c", "sleep 60 & echo done"]);
    assert_eq!(stdout(&output), "done\n");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_planted_link_is_not_followed_into_the_next_run() {
    let bench = Bench::new(Caller::Tester);
    if !nix::unistd::geteuid().is_root() {
        std::os::unix::fs::symlink("/etc", bench.work().join("out")).unwrap();
    } else {
        std::os::unix::fs::chown(bench.work(), Some(65_534), None).unwrap();
        std::os::unix::fs::symlink("/etc", bench.work().join("out")).unwrap();
    }
    let output = bench.run(&["run", "default", "--rw", "out", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("symbolic link"), "{}", stderr(&output));
}

#[test]
fn bad_profiles_are_met_with_place_and_suggestion() {
    let bench = Bench::new(Caller::Tester);
    let cases = [
        (
            r#"{"extends": "default", "limts": {}}"#,
            "p.json:1:30",
            "did you mean `limits`?",
        ),
        (
            r#"{"extends": "default", "limits": {"memory": "5 bananas"}}"#,
            "/limits/memory",
            "is not a size",
        ),
        (
            r#"{"extends": "default", "description": "a", "description": "b"}"#,
            "p.json:1:",
            "duplicate field",
        ),
        (r#"{"extends": "./p.json"}"#, "circle", "p.json"),
        (
            r#"{"extends": "default", "layers": {"landlok": "off"}}"#,
            "/layers/landlok",
            "did you mean landlock?",
        ),
        (
            r#"{"extends": "default", "syscalls": {"allow": ["opneat"]}}"#,
            "opneat",
            "did you mean openat?",
        ),
        ("[]", "p.json:1:", "error:"),
        ("{", "p.json:1:", "EOF"),
    ];
    for (text, place, say) in cases {
        std::fs::write(bench.work().join("p.json"), text).unwrap();
        let output = bench.run(&["run", "./p.json", "--", "true"]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(
            message.contains(place) && message.contains(say),
            "{text}\n{message}"
        );
    }
    let output = bench.run(&["run", ".", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn every_builtin_profile_loads_and_plans() {
    let bench = Bench::new(Caller::Tester);
    let names = [
        "default",
        "strict",
        "build",
        "grade",
        "python",
        "node",
        "java",
        "ci",
        "agent",
        "landlock-only",
    ];
    for name in names {
        let output = bench.run(&["run", "--dry-run", name, "--", "true"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(plan["profile"], name);
    }
}

#[test]
fn a_time_namespace_hides_how_long_the_machine_is_up() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let profile = bench.work().join("p.json");
        std::fs::write(
            &profile,
            r#"{"extends": "default", "namespaces": {"time": true}}"#,
        )
        .unwrap();
        if caller == Caller::Nobody {
            std::os::unix::fs::chown(&profile, Some(65_534), None).unwrap();
        }
        let outside = std::fs::read_to_string("/proc/uptime").unwrap();
        let outside: f64 = outside.split(' ').next().unwrap().parse().unwrap();
        let output = bench.run(&["run", "./p.json", "--", "cat", "/proc/uptime"]);
        let inside: f64 = stdout(&output)
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap_or(f64::MAX);
        assert!(
            inside < 60.0 && inside < outside,
            "{caller:?} {inside} {}",
            stderr(&output)
        );
    }
}

#[test]
fn writes_to_an_overlay_succeed_and_vanish() {
    for caller in callers() {
        let bench = Bench::new(caller);
        let profile = bench.work().join("p.json");
        let text = r#"{"extends": "default", "mounts": [{"type": "overlay", "destination": "/over", "lower": ["${CWD}"]}]}"#;
        std::fs::write(&profile, text).unwrap();
        if caller == Caller::Nobody {
            std::os::unix::fs::chown(&profile, Some(65_534), None).unwrap();
        }
        let output = bench.run(&[
            "run",
            "./p.json",
            "--",
            "sh",
            "-c",
            "echo y > /over/new && ls /over",
        ]);
        assert_eq!(stdout(&output), "new\np.json\n", "{caller:?} {}", stderr(&output));
        assert!(!bench.work().join("new").exists());
    }
}

#[test]
fn a_full_disk_for_the_report_is_an_error_and_no_raw_number() {
    let bench = Bench::new(Caller::Tester);
    let output = bench.run(&["run", "--report", "/dev/full", "default", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).contains("No space left on device\n"),
        "{}",
        stderr(&output)
    );
}
