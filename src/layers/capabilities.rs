//! Ids, groups, the five capability sets, securebits and no_new_privs: capabilities(7), credentials(7).

use serde::Serialize;

use super::Shortfall;
use crate::host::Host;
use crate::layers::namespaces::NamespacesPlan;
use crate::profile::model::{Layer, LayerMode, Profile};
use crate::sys::{Errno, security};

/// Names in the order of their numbers (`linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Root gains nothing by exec, changing ids gives nothing, and none of it can be undone (linux/securebits.h:
/// NOROOT, NO_SETUID_FIXUP, KEEP_CAPS locked off, each with its lock).
const SECUREBITS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5;
/// NO_CAP_AMBIENT_RAISE and its lock.
const SECUREBITS_NO_AMBIENT: u64 = 1 << 6 | 1 << 7;

/// Who the command is and what it may do as that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapabilitiesPlan {
    /// User id, as seen in the command's user namespace.
    pub uid: u32,
    /// Group id, likewise.
    pub gid: u32,
    /// Names of what stays in all five sets.
    pub kept: Vec<String>,
    /// The same as a mask.
    #[serde(skip)]
    pub mask: u64,
    /// All other capabilities leave the bounding set, up to this number.
    #[serde(skip)]
    pub last: u32,
    /// Supplementary groups can be dropped.
    pub drop_groups: bool,
    /// The command's process starts with capabilities (it has a user namespace, or the caller has them).
    #[serde(skip)]
    pub powerful: bool,
    /// Ids must be set (they are not already so).
    #[serde(skip)]
    pub set_ids: bool,
    /// Sets and no_new_privs are left alone; ids are still changed for a root caller.
    pub off: bool,
}

/// A capability name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCapability(pub String);

pub(crate) fn plan(
    profile: &Profile,
    host: &Host,
    namespaces: &NamespacesPlan,
) -> Result<(CapabilitiesPlan, Vec<Shortfall>), UnknownCapability> {
    let off = profile.layers.get(Layer::Capabilities) == LayerMode::Off;
    let mut mask = 0;
    for name in &profile.capabilities {
        let number = NAMES
            .iter()
            .position(|n| n == name)
            .ok_or_else(|| UnknownCapability(name.clone()))?;
        mask |= 1u64 << number;
    }
    let user_namespace = namespaces.ids.is_some();
    let mut shortfalls = Vec::new();
    let drop_groups = host.privileged() && (user_namespace || host.euid == 0) || namespaces.id_helper;
    if !off && !drop_groups && !host.other_groups.is_empty() {
        let groups: Vec<_> = host.other_groups.iter().map(u32::to_string).collect();
        shortfalls.push(Shortfall {
            what: format!("dropping the supplementary groups {}", groups.join(" ")),
            why: "user_namespaces(7) lets an ordinary user map its ids only after giving setgroups(2) up"
                .into(),
            hint: "files that these groups may read are readable inside where a mount shows them; \
                   to drop them run as root, or set identity.id_count above 1 where newgidmap is installed"
                .into(),
            total: false,
            tolerable: true,
        });
    }
    if !off && mask != 0 && !user_namespace && mask & !host.capabilities != 0 {
        shortfalls.push(Shortfall {
            what: "capabilities".into(),
            why: "the caller does not have them, and there is no user namespace to have them in".into(),
            hint: "set namespaces.user to true, or remove them from \"capabilities\"".into(),
            total: false,
            tolerable: false,
        });
    }
    let (uid, gid) = if user_namespace {
        (profile.identity.uid, profile.identity.gid)
    } else {
        (namespaces.outer_uid, namespaces.outer_gid)
    };
    let plan = CapabilitiesPlan {
        uid,
        gid,
        kept: profile.capabilities.clone(),
        mask,
        last: host.last_capability,
        drop_groups,
        powerful: user_namespace || host.capabilities != 0,
        set_ids: user_namespace || host.privileged(),
        off,
    };
    Ok((plan, shortfalls))
}

impl CapabilitiesPlan {
    /// Takes the ids on: init does so before it makes the first file, for a file system of the namespace can hold
    /// mapped ids only. All capabilities stay (the ids that count as root are not involved, or KEEPCAPS holds).
    pub(crate) fn take_ids(&self) -> Result<(), Errno> {
        if !self.set_ids {
            return Ok(());
        }
        if self.powerful {
            security::keep_capabilities()?;
        }
        if self.drop_groups {
            security::clear_groups()?;
        }
        // The group first: once the user is changed there may be no right left to change it. [CWE-696]
        security::set_gid(self.gid)?;
        security::set_uid(self.uid)
    }

    /// Empties the sets of a process that runs no foreign code (init).
    pub(crate) fn disarm(&self) -> Result<(), Errno> {
        if !self.powerful {
            return Ok(());
        }
        security::set_capabilities(0, 0)
    }

    /// All five sets equal to what the profile keeps, locked; then no_new_privs.
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        if self.off {
            return Ok(());
        }
        if self.powerful {
            // With the ids changed by KEEPCAPS the effective set may be empty: raise what is permitted, for the
            // calls below need CAP_SETPCAP.
            let (_, permitted) = security::capabilities()?;
            security::set_capabilities(permitted, 0)?;
            for capability in (0..=self.last).filter(|c| self.mask & 1 << c == 0) {
                security::drop_bounding(capability)?;
            }
            let ambient = if self.mask == 0 { SECUREBITS_NO_AMBIENT } else { 0 };
            security::set_securebits(SECUREBITS | ambient)?;
            security::clear_ambient()?;
            security::set_capabilities(self.mask, self.mask)?;
            for capability in (0..=self.last).filter(|c| self.mask & 1 << c != 0) {
                security::raise_ambient(capability)?;
            }
        }
        security::no_new_privs()
    }
}
