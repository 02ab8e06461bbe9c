//! The enforcement layers, one file or folder each, all of one shape: **plan** (pure: profile and host facts to
//! data or a named [`Shortfall`]), **arm** (in the parent: whatever allocates or opens), **apply** (in the
//! child: system calls only), **explain** (evidence to a violation). They do not use each other's mechanism.

pub mod capabilities;
pub mod cgroup;
pub mod landlock;
pub mod mounts;
pub mod namespaces;
pub mod rlimits;
pub mod seccomp;

use serde::Serialize;

/// Something the profile asks for that this host cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortfall {
    /// What is not enforced: `memory limit`, `TCP port rules`.
    pub what: String,
    /// Why not, with the object and the errno's meaning.
    pub why: String,
    /// What to do about it.
    pub hint: String,
    /// Nothing of the layer is left (its state is `unavailable`, else `partial`).
    pub total: bool,
    /// The layer has a weaker stand-in that still ends the run (polling instead of a cgroup), or the lack is
    /// inherent to an ordinary user: said in the report, but not a reason to refuse.
    pub tolerable: bool,
}
