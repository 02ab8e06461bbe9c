//! `sandbox doctor`: what this machine can enforce, by looking and by trying.

use std::process::{Command, Stdio};

use sandbox::host::Host;

use super::{fail, print};

/// Prints a table, or JSON; 0 when the default profile can be fully enforced.
pub(crate) fn doctor(json: bool) -> u8 {
    let host = match Host::probe() {
        Ok(host) => host,
        Err(why) => return fail(&why, None),
    };
    if json {
        return match serde_json::to_string_pretty(&host) {
            Ok(text) => print(format!("{text}\n").as_bytes()),
            Err(error) => fail(&format!("cannot print the facts: {error}"), None),
        };
    }
    let mut text = format!(
        "kernel       {}.{}\ncaller       uid {}{}\n",
        host.kernel.0,
        host.kernel.1,
        host.uid,
        if host.privileged() {
            " (root: commands run as an unused host uid)"
        } else {
            ""
        }
    );
    text.push_str(&match host.landlock {
        Ok(abi) => format!("landlock     ABI {abi}\n"),
        Err(errno) => format!(
            "landlock     unavailable: {}\n",
            nix::errno::Errno::from_raw(errno).desc()
        ),
    });
    match &host.cgroup {
        Ok(facts) => {
            for (controller, place) in &facts.controllers {
                text.push_str(&match place {
                    Ok(place) => format!(
                        "cgroup       {:<8} {}\n",
                        controller.name(),
                        place.parent.display()
                    ),
                    Err(why) => format!("cgroup       {:<8} unavailable: {why}\n", controller.name()),
                });
            }
        }
        Err(why) => text.push_str(&format!("cgroup       unavailable: {why}\n")),
    }
    text.push_str(&format!(
        "lsm          {}\n",
        if host.lsm.is_empty() {
            "unknown".into()
        } else {
            host.lsm.join(",")
        }
    ));
    // By doing: the whole launch path, with nothing of it trusted.
    let tried = std::env::current_exe().and_then(|me| {
        Command::new(me)
            .args(["run", "default", "--chdir", "/", "--", "/bin/true"])
            .stdin(Stdio::null())
            .output()
    });
    let code = match tried {
        Ok(output) if output.status.success() => {
            text.push_str("launch       the default profile works here\n");
            0
        }
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            text.push_str(&format!(
                "launch       the default profile does not work here:\n{}\n",
                sandbox::report::escape_lines(&why)
            ));
            125
        }
        Err(error) => return fail(&format!("cannot start myself: {error}"), None),
    };
    print(text.as_bytes()).max(code)
}
