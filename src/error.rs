//! What stops a run before or instead of the command.

use std::fmt;

/// Why a run could not be, with the exit code that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Which kind.
    pub kind: ErrorKind,
    /// What failed, on which object, why.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

/// The kinds of failure, by exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The sandbox itself failed, or was asked wrongly: 125.
    Failed,
    /// A required layer cannot be enforced here: 125.
    Refused,
    /// The command cannot be executed: 126.
    NotExecutable,
    /// The command was not found: 127.
    NotFound,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>, hint: Option<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            hint,
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message, None)
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Failed | ErrorKind::Refused => 125,
            ErrorKind::NotExecutable => 126,
            ErrorKind::NotFound => 127,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<crate::profile::load::ProfileError> for Error {
    fn from(error: crate::profile::load::ProfileError) -> Error {
        Error::new(ErrorKind::Failed, error.to_string(), error.hint)
    }
}
