//! setrlimit(2): what the kernel counts for each process.

use serde::Serialize;

use crate::host::Host;
use crate::profile::model::{Layer, LayerMode, Profile};
use crate::sys::{Errno, process};

/// One limit, soft and hard alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// Its name in the profile.
    pub field: &'static str,
    /// `RLIMIT_…` number.
    #[serde(skip)]
    pub resource: u32,
    /// The value.
    pub value: u64,
}

/// What stands in for a cgroup that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StandIns {
    /// Bound each process' private memory.
    pub(crate) memory: bool,
    /// Bound the number of processes of the (namespaced) user.
    pub(crate) processes: bool,
    /// Bound each process' CPU time.
    pub(crate) cpu_time: bool,
}

/// The limits to set. A wish above our own hard limit is lowered to it, which is never weaker.
pub(crate) fn plan(profile: &Profile, host: &Host, stand_ins: StandIns) -> Vec<Rlimit> {
    if profile.layers.get(Layer::Rlimits) == LayerMode::Off {
        return Vec::new();
    }
    let limits = &profile.limits;
    // The supervisor ends the run when the tree exceeds its memory; this only bounds what one process can add
    // between two looks, hence the head-room: the verdict should be the supervisor's.
    let memory = limits
        .memory_bytes
        .filter(|_| stand_ins.memory)
        .map(|m| m.saturating_add(m / 4 + (64 << 20)));
    let cpu = limits
        .cpu_time
        .filter(|_| stand_ins.cpu_time)
        .map(|t| t.as_secs() + 2);
    // Init counts too (same user, same namespace).
    let processes = limits
        .processes
        .filter(|_| stand_ins.processes)
        .map(|n| n.saturating_add(1));
    [
        ("open_files", libc::RLIMIT_NOFILE, limits.open_files),
        ("file_size", libc::RLIMIT_FSIZE, limits.file_size_bytes),
        ("stack", libc::RLIMIT_STACK, limits.stack_bytes),
        ("core", libc::RLIMIT_CORE, limits.core_bytes),
        ("memory", libc::RLIMIT_DATA, memory),
        ("processes", libc::RLIMIT_NPROC, processes),
        ("cpu_time", libc::RLIMIT_CPU, cpu),
    ]
    .into_iter()
    .filter_map(|(field, resource, value)| {
        let value = value?.min(host.hard_limit(resource));
        Some(Rlimit {
            field,
            resource,
            value,
        })
    })
    .collect()
}

/// Sets them; on failure says which.
pub(crate) fn apply(limits: &[Rlimit]) -> Result<(), (u16, Errno)> {
    for (index, limit) in limits.iter().enumerate() {
        process::set_rlimit(limit.resource, limit.value, limit.value)
            .map_err(|errno| (u16::try_from(index).unwrap_or(u16::MAX), errno))?;
    }
    Ok(())
}
