//! The report: its data in [`model`], and how it is shown to a person.

pub mod model;

use std::ffi::OsString;
use std::fmt::Write;

use crate::error::{Error, ErrorKind};
use model::{LayerState, Outcome, ProfileRef, Report, SCHEMA, Status, Usage};

const MOST_SHOWN: usize = 20;

/// Text from inside a sandbox, safe for a terminal: no control characters, no change of writing direction.
#[must_use]
pub fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let hostile = c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
            let escaped: Vec<char> = if hostile {
                c.escape_default().collect()
            } else {
                vec![c]
            };
            escaped
        })
        .collect()
}

/// The same, but line by line.
#[must_use]
pub fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

/// The report of a run that did not come about.
#[must_use]
pub fn of_error(command: &[OsString], profile: &str, error: &Error) -> Report {
    Report {
        schema: SCHEMA.into(),
        command: command.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
        profile: ProfileRef {
            name: profile.into(),
            sha256: String::new(),
        },
        outcome: Outcome {
            status: if error.kind == ErrorKind::Refused {
                Status::Refused
            } else {
                Status::Error
            },
            exit_code: None,
            signal: None,
            limit: None,
            message: Some(error.message.clone()),
            hint: error.hint.clone(),
        },
        usage: Usage {
            source: "estimate".into(),
            ..Usage::default()
        },
        layers: Vec::new(),
        violations: Vec::new(),
        completeness: Vec::new(),
    }
}

/// A summary for stderr: empty when nothing was denied or limited, unless `verbose`.
#[must_use]
pub fn summary(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    let outcome = &report.outcome;
    let mut line = |words: String| {
        writeln!(text, "sandbox: {}", escape(&words)).unwrap_or(());
    };
    if let Some(limit) = &outcome.limit {
        line(format!("ended by the limit {limit}"));
    } else if verbose {
        match (&outcome.signal, outcome.exit_code) {
            (Some(signal), _) => line(format!("ended by {signal}")),
            (None, Some(code)) => line(format!("exited with {code}")),
            (None, None) => line("ended".into()),
        }
    }
    for violation in report.violations.iter().take(MOST_SHOWN) {
        let Some(syscall) = &violation.syscall else {
            continue;
        };
        let object = violation
            .path
            .as_ref()
            .map_or(String::new(), |path| format!(" {path}"));
        let rule = violation.rule.as_ref().map_or(String::new(), |rule| {
            let at = rule.line.map_or(String::new(), |n| format!(":{n}"));
            format!(", {}{at} {}", rule.file, rule.pointer)
        });
        let errno = violation.errno.as_deref().unwrap_or("?");
        line(format!(
            "denied {}x {syscall}{object} with {errno} by {}{rule}",
            violation.count, violation.layer
        ));
        if let Some(hint) = &violation.hint {
            line(format!("  hint: {hint}"));
        }
    }
    if report.violations.len() > MOST_SHOWN {
        line(format!(
            "and {} more kinds of denial",
            report.violations.len() - MOST_SHOWN
        ));
    }
    if verbose {
        for layer in &report.layers {
            let state = match layer.state {
                LayerState::Enforced => "enforced",
                LayerState::Partial => "partial",
                LayerState::Unavailable => "unavailable",
                LayerState::Off => "off",
            };
            line(format!("{:<12} {state:<11} {}", layer.layer, layer.detail));
            for missing in &layer.missing {
                line(format!(
                    "{:<12} missing     {}: {}",
                    "", missing.what, missing.why
                ));
            }
        }
        let usage = &report.usage;
        let mebibytes = usage.memory_peak_bytes.unwrap_or(0) >> 20;
        line(format!(
            "wall {} us, cpu {} us, memory {mebibytes} MiB ({})",
            usage.wall_time_us,
            usage.cpu_time_us.unwrap_or(0),
            usage.source
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_inside_can_paint_the_terminal() {
        let text = escape("x\u{1b}]0;evil\u{7}\n\u{202e}{\"ok\":true}\u{9b}");
        assert!(text.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text}");
    }
}
