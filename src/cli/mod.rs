//! The command line: parsing, dispatch, what is printed. Everything else is the library's.

pub(crate) mod args;
mod doctor;
mod run;

use std::io::Write;

use clap::{CommandFactory, Parser};
use sandbox::profile::load::{BUILTIN, Search, load};

use args::{Cli, Command, ProfileCommand};

/// Runs the program; gives its exit code.
pub(crate) fn main() -> u8 {
    if nix::unistd::geteuid() != nix::unistd::getuid() || nix::unistd::getegid() != nix::unistd::getgid() {
        return fail(
            "this program must not be installed setuid or setgid",
            Some("chmod ug-s the file; it needs no privilege"),
        );
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that is gone is no reason to fail louder.
            error.print().unwrap_or(());
            return if error.use_stderr() { 125 } else { 0 };
        }
    };
    match cli.command {
        Command::Run(options) => run::run(*options),
        Command::Profile(command) => profile(command),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sandbox", &mut text);
            print(&text)
        }
        Command::Man => {
            let mut text = Vec::new();
            match clap_mangen::Man::new(Cli::command()).render(&mut text) {
                Ok(()) => print(&text),
                Err(error) => fail(&format!("cannot render the man page: {error}"), None),
            }
        }
    }
}

/// To stdout; 125 when that fails (but for a reader that is gone).
pub(crate) fn print(text: &[u8]) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("cannot write to stdout: {error}"), None),
    }
}

/// `error:` and `hint:` lines on stderr; 125.
pub(crate) fn fail(message: &str, hint: Option<&str>) -> u8 {
    let mut text = format!("error: {}\n", sandbox::report::escape(message));
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {}\n", sandbox::report::escape(hint)));
    }
    // There is nowhere left to say that stderr is gone.
    std::io::stderr().write_all(text.as_bytes()).unwrap_or(());
    125
}

fn profile(command: ProfileCommand) -> u8 {
    let search = Search::of_caller();
    match command {
        ProfileCommand::List => {
            let mut text = String::new();
            for (name, _) in BUILTIN {
                match load(name, &search) {
                    Ok(profile) => text.push_str(&format!("{name:<14} {}\n", profile.description)),
                    Err(error) => return fail(&error.to_string(), error.hint.as_deref()),
                }
            }
            for directory in &search.directories {
                for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path.extension().is_some_and(|e| e == "json") {
                        text.push_str(&format!("{}\n", path.display()));
                    }
                }
            }
            print(text.as_bytes())
        }
        ProfileCommand::Show { name } => match load(&name, &search) {
            Ok(profile) => match serde_json::to_string_pretty(&profile) {
                Ok(text) => print(format!("{text}\n").as_bytes()),
                Err(error) => fail(&format!("cannot print the profile: {error}"), None),
            },
            Err(error) => fail(&error.to_string(), error.hint.as_deref()),
        },
        ProfileCommand::Check { names } => {
            let mut code = 0;
            for name in names {
                code = code.max(match load(&name, &search) {
                    Ok(_) => print(format!("{name}: ok\n").as_bytes()),
                    Err(error) => fail(&error.to_string(), error.hint.as_deref()),
                });
            }
            code
        }
    }
}
