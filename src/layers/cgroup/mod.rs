//! cgroups(7) v1, v2 and both at once: limits and figures of the whole process tree.
//!
//! How a task joins decides the launch time: a pid written to `cgroup.procs` waits for an RCU grace period
//! (7 to 15 ms); on v1 the child writes `0` to `tasks`, on v2 it is cloned into the group.

mod arm;
mod facts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::Shortfall;
use crate::profile::model::Limits;

pub use arm::{ArmedCgroup, CgroupError, CgroupUsage, EventKind};
pub use facts::{CgroupFacts, Controller, Version};

/// The groups of a run: one for each hierarchy, with what is written where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct CgroupPlan {
    /// Parent directory, version, and files with their values, in order of writing.
    pub groups: Vec<GroupPlan>,
}

/// One new group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupPlan {
    /// Where the new directory is made.
    pub parent: PathBuf,
    /// v1 or v2.
    pub version: Version,
    /// v2: controllers to switch on for children of `parent`.
    pub enable: Vec<&'static str>,
    /// Which controllers this group is for.
    pub controllers: Vec<Controller>,
    /// File and value; each is read back.
    pub settings: Vec<(String, String)>,
}

impl CgroupPlan {
    /// No group is needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn sets(&self, names: &[&str]) -> bool {
        self.groups
            .iter()
            .any(|g| g.settings.iter().any(|(file, _)| names.contains(&file.as_str())))
    }

    /// The kernel limits memory.
    #[must_use]
    pub fn limits_memory(&self) -> bool {
        self.sets(&["memory.limit_in_bytes", "memory.max"])
    }

    /// The kernel limits processes.
    #[must_use]
    pub fn limits_processes(&self) -> bool {
        self.sets(&["pids.max"])
    }

    /// The kernel counts CPU time of the tree.
    #[must_use]
    pub fn accounts_cpu(&self) -> bool {
        self.groups
            .iter()
            .any(|g| g.version == Version::V2 || g.controllers.contains(&Controller::Cpuacct))
    }
}

/// File and value.
type Setting = (String, String);
/// Controller, the limit's name, what to write on v1 and on v2.
type Wanted<'a> = (Controller, &'a str, Vec<Setting>, Vec<Setting>);

const PERIOD_US: u64 = 100_000;

/// Which groups to make for these limits; what no usable controller can limit is a shortfall.
#[must_use]
pub fn plan(limits: &Limits, facts: &CgroupFacts) -> (CgroupPlan, Vec<Shortfall>) {
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    let mut shortfalls = Vec::new();
    let pair = |file: &str, value: String| (file.to_owned(), value);
    if let Some(bytes) = limits.memory_bytes {
        let swap = limits.swap_bytes.unwrap_or(0);
        let mut v1 = vec![pair("memory.limit_in_bytes", bytes.to_string())];
        let mut v2 = vec![
            pair("memory.max", bytes.to_string()),
            pair("memory.oom.group", "1".into()),
        ];
        match facts.swap_accounting {
            true => {
                v1.push(pair(
                    "memory.memsw.limit_in_bytes",
                    bytes.saturating_add(swap).to_string(),
                ));
                v2.push(pair("memory.swap.max", swap.to_string()));
            }
            // Without accounting, a machine without swap still keeps the promise.
            false if !facts.swap_present || !facts.controllers.contains_key(&Controller::Memory) => {}
            false => shortfalls.push(Shortfall {
                what: "swap limit".into(),
                why: "this kernel does not count swap".into(),
                hint: "boot with swapaccount=1, or switch swap off".into(),
                total: false,
                tolerable: false,
            }),
        }
        wanted.push((Controller::Memory, "memory limit", v1, v2));
    }
    if let Some(processes) = limits.processes {
        // Init is in the group too.
        let value = vec![pair("pids.max", processes.saturating_add(1).to_string())];
        wanted.push((Controller::Pids, "process limit", value.clone(), value));
    }
    if let Some(cpus) = limits.cpus {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded to a sane share first"
        )]
        let quota = (cpus.clamp(0.01, 4096.0) * PERIOD_US as f64) as u64;
        let v1 = vec![
            pair("cpu.cfs_period_us", PERIOD_US.to_string()),
            pair("cpu.cfs_quota_us", quota.to_string()),
        ];
        wanted.push((
            Controller::Cpu,
            "CPU quota",
            v1,
            vec![pair("cpu.max", format!("{quota} {PERIOD_US}"))],
        ));
    }
    if let Some(weight) = limits.cpu_weight {
        let shares = (weight * 1024 / 100).clamp(2, 262_144);
        let v1 = vec![pair("cpu.shares", shares.to_string())];
        wanted.push((
            Controller::Cpu,
            "CPU weight",
            v1,
            vec![pair("cpu.weight", weight.clamp(1, 10_000).to_string())],
        ));
    }
    if let Some(cpus) = &limits.cpuset {
        let mems = facts.cpuset_mems.clone().unwrap_or_else(|| "0".into());
        let v1 = vec![pair("cpuset.mems", mems), pair("cpuset.cpus", cpus.clone())];
        wanted.push((
            Controller::Cpuset,
            "cpuset",
            v1,
            vec![pair("cpuset.cpus", cpus.clone())],
        ));
    }
    for (rate, v1_file, v2_key, what) in [
        (
            limits.io_read_bytes_per_second,
            "blkio.throttle.read_bps_device",
            "rbps",
            "I/O read bandwidth",
        ),
        (
            limits.io_write_bytes_per_second,
            "blkio.throttle.write_bps_device",
            "wbps",
            "I/O write bandwidth",
        ),
    ] {
        let Some(rate) = rate else { continue };
        let v1 = facts
            .disks
            .iter()
            .map(|disk| pair(v1_file, format!("{disk} {rate}")))
            .collect();
        let v2 = facts
            .disks
            .iter()
            .map(|disk| pair("io.max", format!("{disk} {v2_key}={rate}")))
            .collect();
        wanted.push((Controller::Io, what, v1, v2));
    }
    let mut groups: BTreeMap<PathBuf, GroupPlan> = BTreeMap::new();
    for (controller, what, v1, v2) in wanted {
        match facts.controllers.get(&controller) {
            Some(Ok(place)) => {
                let group = group_at(&mut groups, place);
                attach(group, controller);
                group
                    .settings
                    .extend(if place.version == Version::V1 { v1 } else { v2 });
            }
            unusable => shortfalls.push(Shortfall {
                what: what.into(),
                why: match unusable {
                    Some(Err(why)) => why.clone(),
                    _ => format!(
                        "no cgroup hierarchy here has the {} controller",
                        controller.name()
                    ),
                },
                hint: "run as root, or where cgroups are delegated to you: \
                       `systemd-run --user --scope -p Delegate=yes sandbox run …`"
                    .into(),
                total: false,
                tolerable: matches!(controller, Controller::Memory | Controller::Pids),
            }),
        }
    }
    // CPU time of the tree costs nothing more where there is a group, and is exact only there.
    if let Some(Ok(place)) = facts.controllers.get(&Controller::Cpuacct)
        && (!groups.is_empty() || limits.cpu_time.is_some())
    {
        attach(group_at(&mut groups, place), Controller::Cpuacct);
    }
    (
        CgroupPlan {
            groups: groups.into_values().collect(),
        },
        shortfalls,
    )
}

fn group_at<'a>(groups: &'a mut BTreeMap<PathBuf, GroupPlan>, place: &facts::Place) -> &'a mut GroupPlan {
    groups.entry(place.parent.clone()).or_insert_with(|| GroupPlan {
        parent: place.parent.clone(),
        version: place.version,
        enable: Vec::new(),
        controllers: Vec::new(),
        settings: Vec::new(),
    })
}

fn attach(group: &mut GroupPlan, controller: Controller) {
    if !group.controllers.contains(&controller) {
        group.controllers.push(controller);
        // cpu.stat is always there on v2.
        if group.version == Version::V2 && controller != Controller::Cpuacct {
            group.enable.push(controller.name());
        }
    }
}
