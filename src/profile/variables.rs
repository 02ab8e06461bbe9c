//! `${NAME}` in paths and values.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What variables stand for in one run.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    /// Name and value.
    pub values: Vec<(&'static str, OsString)>,
}

impl Variables {
    /// Replaces every `${NAME}`; `$${` is a literal `${`. Values need not be UTF-8.
    ///
    /// # Errors
    /// An unknown name, or a `${` that is not closed.
    pub fn expand(&self, text: &str) -> Result<OsString, String> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                out.extend_from_slice(&rest.as_bytes()[..at - 1]);
                out.extend_from_slice(b"${");
                rest = &rest[at + 2..];
                continue;
            }
            out.extend_from_slice(&rest.as_bytes()[..at]);
            let after = &rest[at + 2..];
            let end = after.find('}').ok_or("a \"${\" is not closed by \"}\"")?;
            let name = &after[..end];
            let value = self
                .values
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.as_os_str());
            out.extend_from_slice(value.ok_or_else(|| self.unknown(name))?.as_bytes());
            rest = &after[end + 1..];
        }
        out.extend_from_slice(OsStr::new(rest).as_bytes());
        Ok(OsString::from_vec(out))
    }

    fn unknown(&self, name: &str) -> String {
        let names: Vec<_> = self.values.iter().map(|(n, _)| *n).collect();
        match super::suggest::closest(name, names.iter().copied()) {
            Some(meant) => format!("there is no variable ${{{name}}}; did you mean ${{{meant}}}?"),
            None => format!("there is no variable ${{{name}}}; there are {}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        Variables {
            values: vec![("CWD", "/w".into()), ("HOME", "/h".into())],
        }
    }

    #[test]
    fn variables_are_replaced_and_escapes_kept() {
        assert_eq!(variables().expand("${CWD}/a:${HOME}").unwrap(), "/w/a:/h");
        assert_eq!(variables().expand("$${CWD}").unwrap(), "${CWD}");
    }

    #[test]
    fn an_unknown_variable_is_met_with_the_right_one() {
        assert_eq!(
            variables().expand("${HOEM}").unwrap_err(),
            "there is no variable ${HOEM}; did you mean ${HOME}?"
        );
        assert!(variables().expand("${CWD").is_err());
    }
}
