//! The only unsafe code of the crate: thin, typed, allocation-free wrappers of system calls that `nix` does not
//! have, or has in a form that allocates. Everything the child calls between clone and exec is here.

pub(crate) mod board;
pub(crate) mod fd;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod security;

pub(crate) use nix::errno::Errno;

/// Turns the `-1 and errno` of a system call into a `Result`.
pub(crate) fn check(result: libc::c_long) -> Result<i64, Errno> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}
