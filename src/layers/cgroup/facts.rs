//! Which controllers are where, and whether we may make groups there.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
use serde::Serialize;

use super::CgroupError;

/// The controllers that limits need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// memory
    Memory,
    /// pids
    Pids,
    /// cpu
    Cpu,
    /// cpuacct (v1); on v2 every group counts CPU time
    Cpuacct,
    /// cpuset
    Cpuset,
    /// blkio (v1), io (v2)
    Io,
}

impl Controller {
    const ALL: [Controller; 6] = [
        Controller::Memory,
        Controller::Pids,
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Io,
    ];

    /// Its name on v2 (and on v1, but for `blkio`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Io => "io",
        }
    }

    fn v1_name(self) -> &'static str {
        if self == Controller::Io {
            "blkio"
        } else {
            self.name()
        }
    }
}

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// One hierarchy for each controller or a few.
    V1,
    /// The unified one.
    V2,
}

/// Where groups for a controller can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Version of the hierarchy.
    pub version: Version,
    /// The directory in which a group is made.
    pub parent: PathBuf,
}

/// What is known about this machine's cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct CgroupFacts {
    /// For each controller that a hierarchy has: where, or why not.
    pub controllers: BTreeMap<Controller, Result<Place, String>>,
    /// `memory.memsw.*` or `memory.swap.*` is there.
    pub swap_accounting: bool,
    /// The machine has swap.
    pub swap_present: bool,
    /// Memory nodes for a v1 cpuset.
    pub cpuset_mems: Option<String>,
    /// `major:minor` of whole disks.
    pub disks: Vec<String>,
}

/// A mounted hierarchy, by `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Which group is mounted.
    root: PathBuf,
    mount_point: PathBuf,
    controllers: Vec<String>,
}

impl CgroupFacts {
    /// Reads `/proc/self/{cgroup,mountinfo}` and tries access(2).
    ///
    /// # Errors
    /// When these cannot be read.
    pub fn probe() -> Result<CgroupFacts, CgroupError> {
        let read = |path: &str| {
            std::fs::read(path).map_err(|source| CgroupError::Read {
                path: path.into(),
                why: source.to_string(),
            })
        };
        let hierarchies = parse_mountinfo(&read("/proc/self/mountinfo")?);
        let own = parse_own(&String::from_utf8_lossy(&read("/proc/self/cgroup")?));
        let mut facts = CgroupFacts::default();
        for hierarchy in &hierarchies {
            match hierarchy.version {
                Version::V1 => v1(hierarchy, &own, &mut facts),
                Version::V2 => v2(hierarchy, &own, &mut facts),
            }
        }
        if let Some(Ok(place)) = facts.controllers.get(&Controller::Memory) {
            facts.swap_accounting = match place.version {
                Version::V1 => place.parent.join("memory.memsw.usage_in_bytes").exists(),
                // The file is in every group but the root.
                Version::V2 => {
                    place.parent.join("memory.swap.max").exists() || Path::new("/proc/swaps").exists()
                }
            };
        }
        facts.swap_present =
            std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().nth(1).is_some());
        if let Some(Ok(Place {
            version: Version::V1,
            parent,
        })) = facts.controllers.get(&Controller::Cpuset)
        {
            facts.cpuset_mems = std::fs::read_to_string(parent.join("cpuset.mems"))
                .ok()
                .map(|text| text.trim().to_owned());
        }
        if facts.controllers.contains_key(&Controller::Io) {
            facts.disks = disks();
        }
        Ok(facts)
    }
}

fn may_make(directory: &Path) -> Result<(), String> {
    nix::unistd::access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        format!(
            "no group can be made in {}: {}",
            directory.display(),
            errno.desc()
        )
    })
}

fn own_directory(hierarchy: &Hierarchy, own: &Path) -> PathBuf {
    // In a cgroup namespace or a container the mount may show a subtree only.
    let below = own
        .strip_prefix(&hierarchy.root)
        .or_else(|_| own.strip_prefix("/"))
        .unwrap_or(Path::new(""));
    let directory = hierarchy.mount_point.join(below);
    if directory.is_dir() {
        directory
    } else {
        hierarchy.mount_point.clone()
    }
}

fn v1(hierarchy: &Hierarchy, own: &[(Vec<String>, PathBuf)], facts: &mut CgroupFacts) {
    for controller in Controller::ALL {
        if !hierarchy.controllers.iter().any(|c| c == controller.v1_name()) {
            continue;
        }
        let group = own
            .iter()
            .find(|(c, _)| c.iter().any(|c| c == controller.v1_name()));
        let parent = own_directory(hierarchy, group.map_or(Path::new("/"), |(_, path)| path));
        let place = may_make(&parent).map(|()| Place {
            version: Version::V1,
            parent,
        });
        facts.controllers.insert(controller, place);
    }
}

fn v2(hierarchy: &Hierarchy, own: &[(Vec<String>, PathBuf)], facts: &mut CgroupFacts) {
    let group = own
        .iter()
        .find(|(c, _)| c.is_empty())
        .map_or(Path::new("/"), |(_, path)| path);
    let mine = own_directory(hierarchy, group);
    let list = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    // A group with processes of its own cannot give controllers to children (the root can): then the groups are
    // made beside ours, where the parent was delegated with us.
    let is_root = !mine.join("cgroup.type").exists();
    let mut candidates = vec![mine.clone()];
    if !is_root && let Some(parent) = mine.parent().filter(|p| p.starts_with(&hierarchy.mount_point)) {
        candidates.push(parent.to_owned());
    }
    for controller in Controller::ALL {
        if matches!(facts.controllers.get(&controller), Some(Ok(_))) {
            continue;
        }
        let name = controller.name();
        let mut why = None;
        for parent in &candidates {
            let has = |file: &str| list(parent.join(file)).split_whitespace().any(|c| c == name);
            if controller != Controller::Cpuacct && !has("cgroup.controllers") {
                continue;
            }
            let enabled = controller == Controller::Cpuacct || has("cgroup.subtree_control");
            let can_enable = is_root || *parent != mine;
            let writable = may_make(parent).and_then(|()| {
                let control = parent.join("cgroup.subtree_control");
                if enabled {
                    // Moving in needs write access to the common ancestor as well.
                    return nix::unistd::access(&parent.join("cgroup.procs"), AccessFlags::W_OK)
                        .map_err(|errno| format!("{}: {}", parent.join("cgroup.procs").display(), errno.desc()));
                }
                if !can_enable {
                    return Err(format!(
                        "{} holds processes, so it cannot give the {name} controller to a child (cgroups(7), no internal processes)",
                        parent.display()
                    ));
                }
                nix::unistd::access(&control, AccessFlags::W_OK)
                    .map_err(|errno| format!("{}: {}", control.display(), errno.desc()))
            });
            match writable {
                Ok(()) => {
                    facts.controllers.insert(
                        controller,
                        Ok(Place {
                            version: Version::V2,
                            parent: parent.clone(),
                        }),
                    );
                    why = None;
                    break;
                }
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        if let Some(reason) = why {
            facts.controllers.entry(controller).or_insert(Err(reason));
        }
    }
}

fn disks() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            !["loop", "ram", "zram"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

/// `/proc/self/cgroup`: controllers (none for v2) and path.
fn parse_own(text: &str) -> Vec<(Vec<String>, PathBuf)> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let controllers = controllers
                .split(',')
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
                .collect();
            Some((controllers, PathBuf::from(path)))
        })
        .collect()
}

fn parse_mountinfo(text: &[u8]) -> Vec<Hierarchy> {
    text.split(|b| *b == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<Hierarchy> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let separator = fields.iter().position(|f| *f == b"-")?;
    let version = match *fields.get(separator + 1)? {
        b"cgroup" => Version::V1,
        b"cgroup2" => Version::V2,
        _ => return None,
    };
    let options = String::from_utf8_lossy(fields.get(separator + 3)?).into_owned();
    Some(Hierarchy {
        version,
        root: unescape(fields.get(3)?),
        mount_point: unescape(fields.get(4)?),
        controllers: options.split(',').map(str::to_owned).collect(),
    })
}

/// Takes the octal escapes of mountinfo back (proc_pid_mountinfo(5)).
fn unescape(bytes: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Some(value) = std::str::from_utf8(digits)
                .ok()
                .and_then(|d| u8::from_str_radix(d, 8).ok())
        {
            out.push(value);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchies_are_told_apart() {
        let text = b"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            41 31 0:38 /a\\040b /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n\
            27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        let found = parse_mountinfo(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].version, Version::V1);
        assert!(found[1].controllers.contains(&"cpuacct".to_owned()));
        assert_eq!(found[2].root, Path::new("/a b"));
    }

    #[test]
    fn own_groups_are_read_for_both_versions() {
        let own = parse_own("4:memory:/jobs/a:b\n3:cpu,cpuacct:/\n0::/user.slice\n");
        assert_eq!(own[0], (vec!["memory".to_owned()], PathBuf::from("/jobs/a:b")));
        assert_eq!(own[2], (vec![], PathBuf::from("/user.slice")));
    }

    #[test]
    fn a_broken_escape_stays_as_it_is() {
        assert_eq!(unescape(b"/a\\04"), Path::new("/a\\04"));
        assert_eq!(unescape(b"/a\\999b"), Path::new("/a\\999b"));
    }
}
