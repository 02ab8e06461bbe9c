//! landlock(7): the mount table and the network statement once more, as rules that hold without any namespace.
//!
//! Rules bind to mounted objects: one made before the mounts would not cover them. So the parent makes the
//! ruleset with its port rules, and the command adds the path rules after `pivot_root`.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use serde::Serialize;

use super::Shortfall;
use super::mounts::{Content, MountsPlan};
use crate::host::Host;
use crate::profile::model::{Layer, LayerMode, NetworkMode, Profile};
use crate::sys::{Errno, fd, security};

/// The ruleset of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LandlockPlan {
    /// ABI of the kernel, capped at what this program knows.
    pub abi: u32,
    /// What is granted below which path.
    pub paths: Vec<PathRule>,
    /// TCP ports that may be bound; `None`: not restricted here.
    pub tcp_bind: Option<Vec<u16>>,
    /// TCP ports that may be connected to; `None`: not restricted here.
    pub tcp_connect: Option<Vec<u16>>,
    /// Signals and abstract unix sockets end at the sandbox (ABI 6).
    pub scoped: bool,
}

/// What is granted below one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathRule {
    /// Path as the command sees it.
    pub path: PathBuf,
    /// In words.
    pub grant: Grant,
    /// Rights, as `LANDLOCK_ACCESS_FS_*` bits that this ABI has.
    #[serde(skip)]
    pub access: u64,
}

/// What a rule grants, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// List directories.
    List,
    /// Read files, list directories.
    Read,
    /// The same and execute.
    ReadExecute,
    /// Everything but execute and making device nodes.
    Write,
    /// Everything but making device nodes.
    WriteExecute,
    /// Read, write and ioctl of devices.
    Device,
}

/// Newest ABI whose rights are known here: 7 (Linux 6.15).
const KNOWN: u32 = 7;

fn abi(number: u32) -> ABI {
    match number {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    }
}

fn rights(grant: Grant, directory: bool, version: u32) -> u64 {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let nodes = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let mut bits: BitFlags<AccessFs> = match grant {
        Grant::List => AccessFs::ReadDir.into(),
        Grant::Read => read,
        Grant::ReadExecute => read | AccessFs::Execute,
        Grant::Write => BitFlags::all() & !nodes & !BitFlags::from(AccessFs::Execute),
        Grant::WriteExecute => BitFlags::all() & !nodes,
        Grant::Device => read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev,
    };
    if !directory {
        bits &= AccessFs::from_file(ABI::V6);
    }
    (bits & AccessFs::from_all(abi(version))).bits()
}

/// The ruleset, and what this kernel's ABI cannot express of it.
pub(crate) fn plan(
    profile: &Profile,
    host: &Host,
    mounts: &MountsPlan,
) -> (Option<LandlockPlan>, Vec<Shortfall>) {
    if profile.layers.get(Layer::Landlock) == LayerMode::Off {
        return (None, Vec::new());
    }
    let version = match host.landlock {
        Ok(version) if version > 0 => version.min(KNOWN),
        Ok(_) => return (None, vec![missing("the kernel answers with ABI 0".into())]),
        Err(errno) => {
            let errno = Errno::from_raw(errno);
            let why = match errno {
                Errno::EOPNOTSUPP => "it is built into the kernel but switched off at boot".into(),
                Errno::ENOSYS => {
                    "the kernel does not have it (Linux 5.13), or an outer sandbox hides it".into()
                }
                other => format!("landlock_create_ruleset: {}", other.desc()),
            };
            return (None, vec![missing(why)]);
        }
    };
    let mut shortfalls = Vec::new();
    if !mounts.applied && version < 3 {
        shortfalls.push(Shortfall {
            what: "refusing truncate(2)".into(),
            why: format!(
                "Landlock ABI {version} does not know it (ABI 3, Linux 6.2), and no mount is read-only"
            ),
            hint: "use a profile with a mount namespace, or a newer kernel, or --best-effort landlock".into(),
            total: false,
            tolerable: false,
        });
    }
    let network = &profile.network;
    let network_off = profile.layers.get(Layer::Network) == LayerMode::Off;
    // With no network at all nothing may be bound or connected, even if a namespace failed to hold.
    let closed = (network.mode == NetworkMode::None).then(Vec::new);
    let ports = |list: &Option<Vec<u16>>| {
        if network_off || version < 4 {
            None
        } else {
            list.clone().or_else(|| closed.clone())
        }
    };
    let plan = LandlockPlan {
        abi: version,
        paths: path_rules(mounts, version),
        tcp_bind: ports(&network.tcp_bind),
        tcp_connect: ports(&network.tcp_connect),
        scoped: version >= 6,
    };
    (Some(plan), shortfalls)
}

fn missing(why: String) -> Shortfall {
    Shortfall {
        what: "Landlock".into(),
        why,
        hint: "boot with `lsm=landlock,…` or a kernel from 5.13 on, or pass --best-effort landlock".into(),
        total: true,
        tolerable: false,
    }
}

fn path_rules(mounts: &MountsPlan, version: u32) -> Vec<PathRule> {
    let mut rules = Vec::new();
    let mut grant = |path: PathBuf, grant: Grant, directory: bool| {
        let access = rights(grant, directory, version);
        if access != 0 {
            rules.push(PathRule { path, grant, access });
        }
    };
    if let Some(root) = mounts.root_grant() {
        grant("/".into(), root, true);
    }
    for entry in &mounts.entries {
        let path = if mounts.applied {
            entry.destination.clone()
        } else {
            entry.host_path()
        };
        match &entry.content {
            Content::Bind {
                source,
                writable,
                executable,
                ..
            } => {
                let kind = match (writable, executable) {
                    (false, false) => Grant::Read,
                    (false, true) => Grant::ReadExecute,
                    (true, false) => Grant::Write,
                    (true, true) => Grant::WriteExecute,
                };
                grant(
                    path,
                    if source.special { Grant::Device } else { kind },
                    source.directory,
                );
            }
            Content::Tmpfs { executable, .. } if mounts.applied => {
                grant(
                    path,
                    if *executable {
                        Grant::WriteExecute
                    } else {
                        Grant::Write
                    },
                    true,
                );
            }
            Content::Overlay { .. } if mounts.applied => grant(path, Grant::WriteExecute, true),
            Content::Mqueue if mounts.applied => grant(path, Grant::Write, true),
            Content::File { .. } if mounts.applied => grant(path, Grant::Read, false),
            Content::Proc { .. } => grant(path, Grant::Read, true),
            Content::Dev if mounts.applied => {
                grant(path.clone(), Grant::Device, true);
                grant(path.join("shm"), Grant::Write, true);
            }
            Content::Dev => {
                for name in super::mounts::DEVICES {
                    grant(path.join(name), Grant::Device, false);
                }
            }
            Content::Symlink { .. }
            | Content::Directory { .. }
            | Content::Mask { .. }
            | Content::Tmpfs { .. }
            | Content::Overlay { .. }
            | Content::Mqueue
            | Content::File { .. } => {}
        }
    }
    rules
}

/// The ruleset's descriptor, port rules in it.
///
/// # Errors
/// In words: the kernel refused a right that its ABI number promises.
pub(crate) fn arm(plan: &LandlockPlan) -> Result<OwnedFd, String> {
    let abi = abi(plan.abi);
    let build = || -> Result<Option<OwnedFd>, landlock::RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(landlock::CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))?;
        if plan.tcp_bind.is_some() {
            ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
        }
        if plan.tcp_connect.is_some() {
            ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
        }
        if plan.scoped {
            ruleset = ruleset.scope(Scope::from_all(abi))?;
        }
        let mut created = ruleset.create()?;
        for (ports, access) in [
            (&plan.tcp_bind, AccessNet::BindTcp),
            (&plan.tcp_connect, AccessNet::ConnectTcp),
        ] {
            for port in ports.iter().flatten() {
                created = created.add_rule(NetPort::new(*port, access))?;
            }
        }
        Ok(created.into())
    };
    match build() {
        Ok(Some(fd)) => Ok(fd),
        Ok(None) => Err("the kernel gave no ruleset".into()),
        Err(error) => Err(error.to_string()),
    }
}

use landlock::Compatible;

/// In the command, after `pivot_root`: adds the path rules. On failure says which.
pub(crate) fn add_paths(ruleset: RawFd, paths: &[(std::ffi::CString, u64)]) -> Result<(), (u16, Errno)> {
    for (index, (path, access)) in paths.iter().enumerate() {
        let at = |errno| (u16::try_from(index).unwrap_or(u16::MAX), errno);
        let target = fd::openat(fd::CWD, path, libc::O_PATH, 0).map_err(at)?;
        let added = security::landlock_allow(ruleset, *access, target);
        fd::close(target);
        added.map_err(at)?;
    }
    Ok(())
}

/// Enters the domain.
pub(crate) fn enter(ruleset: &OwnedFd) -> Result<(), Errno> {
    security::landlock_restrict(ruleset.as_raw_fd())
}
