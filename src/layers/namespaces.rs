//! namespaces(7): which are made, and how ids map.

use serde::Serialize;

use super::Shortfall;
use crate::host::Host;
use crate::profile::model::{Layer, LayerMode, NetworkMode, Profile};
use crate::sys::process::CLONE_NEWTIME;

/// First of the ids that no system hands out (systemd's UIDS-GIDS.md: 0x70000000 to 0x7FFFFFFE are unused): a
/// root caller's command runs as one of these, another one for each supervisor alive.
const UNUSED_IDS: u32 = 0x7000_0000;
/// Linux' largest pid is below 2^22 (`/proc/sys/kernel/pid_max`).
const PID_SPAN: u32 = 1 << 22;

/// The namespaces of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespacesPlan {
    /// Names of those that are made.
    pub unshared: Vec<&'static str>,
    /// clone3 flags, without the cgroup namespace (made after the cgroup is joined, so that its root is the run's
    /// own group) and the time namespace (whose clocks must be set before anything enters it).
    #[serde(skip)]
    pub clone_flags: u64,
    /// unshare(2) after joining the cgroup.
    #[serde(skip)]
    pub cgroup: bool,
    /// unshare(2) before the command is made.
    #[serde(skip)]
    pub time: bool,
    /// Hostname inside, in a uts namespace of its own.
    pub hostname: Option<String>,
    /// Id maps, when there is a user namespace.
    pub ids: Option<IdMap>,
    /// Makes `ids` by `newuidmap` and `newgidmap`, which only an ordinary user with more than one id needs.
    pub id_helper: bool,
    /// The user id the command runs as, seen from outside.
    pub outer_uid: u32,
    /// The group id the command runs as, seen from outside.
    pub outer_gid: u32,
}

/// uid_map and gid_map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// First user id inside.
    pub inner_uid: u32,
    /// First group id inside.
    pub inner_gid: u32,
    /// First user id outside.
    pub outer_uid: u32,
    /// First group id outside.
    pub outer_gid: u32,
    /// How many.
    pub count: u32,
}

/// Which namespaces to make, and what of it this host refuses.
pub(crate) fn plan(profile: &Profile, host: &Host, run: u32) -> (NamespacesPlan, Vec<Shortfall>) {
    let off = profile.layers.get(Layer::Namespaces) == LayerMode::Off;
    let mut shortfalls = Vec::new();
    let want = profile.namespaces;
    let net_off =
        profile.layers.get(Layer::Network) == LayerMode::Off || profile.network.mode == NetworkMode::Host;
    let mounts_off = profile.layers.get(Layer::Mounts) == LayerMode::Off;
    let cgroup_off = profile.layers.get(Layer::Cgroup) == LayerMode::Off;
    let table: [(&'static str, bool, u64); 8] = [
        ("user", want.user, libc::CLONE_NEWUSER as u64),
        ("mount", want.mount && !mounts_off, libc::CLONE_NEWNS as u64),
        ("pid", want.pid, libc::CLONE_NEWPID as u64),
        ("net", want.net && !net_off, libc::CLONE_NEWNET as u64),
        ("ipc", want.ipc, libc::CLONE_NEWIPC as u64),
        ("uts", want.uts, libc::CLONE_NEWUTS as u64),
        ("cgroup", want.cgroup && !cgroup_off, libc::CLONE_NEWCGROUP as u64),
        ("time", want.time, CLONE_NEWTIME),
    ];
    let chosen: Vec<_> = table.iter().filter(|(_, wanted, _)| *wanted && !off).collect();
    let has = |name: &str| chosen.iter().any(|(n, ..)| *n == name);
    let flags = chosen.iter().fold(0, |all, (_, _, flag)| all | flag);

    let (outer_uid, outer_gid) = outer_ids(host, run);
    let count = profile.identity.id_count.max(1);
    let user = has("user");
    let id_helper = user && count > 1 && !host.privileged();
    let ids = user.then(|| {
        if count > 1 {
            let span = UNUSED_IDS.wrapping_add(host.pid % 0x2000 * 0x1_0000);
            IdMap {
                inner_uid: 0,
                inner_gid: 0,
                outer_uid: span,
                outer_gid: span,
                count,
            }
        } else {
            IdMap {
                inner_uid: profile.identity.uid,
                inner_gid: profile.identity.gid,
                outer_uid,
                outer_gid,
                count: 1,
            }
        }
    });
    if !user && !off && want.user {
        shortfalls.push(Shortfall {
            what: "user namespace".into(),
            why: "it is not available".into(),
            hint: "see `sandbox doctor`".into(),
            total: false,
            tolerable: false,
        });
    }
    if host.euid == 0 && !host.privileged() && host.initial_user_namespace {
        shortfalls.push(Shortfall {
            what: "a user id other than root's outside".into(),
            why: "root here lacks CAP_SYS_ADMIN, CAP_SETUID or CAP_SETGID, so the command would stay host uid 0".into(),
            hint: "start it as an ordinary user, or give root these capabilities".into(),
            total: false,
            tolerable: false,
        });
    }
    if host.privileged() && !user {
        // Still not host root: the command's ids are changed outright.
        debug_assert_ne!(outer_uid, 0);
    }
    let plan = NamespacesPlan {
        unshared: chosen.iter().map(|(name, ..)| *name).collect(),
        clone_flags: flags & !(CLONE_NEWTIME | libc::CLONE_NEWCGROUP as u64),
        cgroup: has("cgroup"),
        time: has("time"),
        hostname: has("uts").then(|| profile.identity.hostname.clone()),
        ids,
        id_helper,
        outer_uid,
        outer_gid,
    };
    (plan, shortfalls)
}

/// The ids the command has outside: the caller's own, but for root an unused one.
fn outer_ids(host: &Host, run: u32) -> (u32, u32) {
    if host.privileged() {
        let slots = (0x7fff_fffe - UNUSED_IDS) / PID_SPAN;
        let id = UNUSED_IDS + run % slots * PID_SPAN + host.pid % PID_SPAN;
        (id, id)
    } else {
        (host.uid, host.gid)
    }
}
