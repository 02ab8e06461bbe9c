//! The JSON as written: everything optional, nothing unknown.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// A profile file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    #[serde(rename = "$schema")]
    pub(super) _schema: Option<String>,
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) description: Option<String>,
    pub(super) extends: Option<OneOrMany>,
    #[serde(default)]
    pub(super) namespaces: Namespaces,
    #[serde(default)]
    pub(super) identity: Identity,
    pub(super) root: Option<Root>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    pub(super) cwd: Option<String>,
    #[serde(default)]
    pub(super) syscalls: Syscalls,
    #[serde(default)]
    pub(super) capabilities: Vec<String>,
    pub(super) network: Option<Network>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) environment: Environment,
    #[serde(default)]
    pub(super) stdio: Stdio,
    pub(super) apparmor: Option<AppArmor>,
    pub(super) selinux: Option<SeLinux>,
    #[serde(default, deserialize_with = "unique")]
    pub(super) layers: BTreeMap<String, Mode>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Namespaces {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) user: Option<bool>,
    pub(super) mount: Option<bool>,
    pub(super) pid: Option<bool>,
    pub(super) net: Option<bool>,
    pub(super) ipc: Option<bool>,
    pub(super) uts: Option<bool>,
    pub(super) cgroup: Option<bool>,
    pub(super) time: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) id_count: Option<u32>,
    pub(super) hostname: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) path: String,
    #[serde(default)]
    pub(super) access: RootAccess,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RootAccess {
    #[default]
    ReadOnly,
    ReadWrite,
    Overlay,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Access {
    #[default]
    Ro,
    Rw,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Owner {
    #[default]
    Host,
    Caller,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Subset {
    #[default]
    All,
    Pid,
}

/// One entry of the mount table. One flat struct and not a tagged enum, which would lose line and column.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: MountType,
    pub(super) destination: Option<String>,
    pub(super) source: Option<String>,
    pub(super) access: Option<Access>,
    pub(super) executable: Option<bool>,
    pub(super) optional: Option<bool>,
    pub(super) owner: Option<Owner>,
    pub(super) size: Option<String>,
    pub(super) inodes: Option<u64>,
    pub(super) mode: Option<String>,
    pub(super) subset: Option<Subset>,
    pub(super) to: Option<String>,
    pub(super) content: Option<String>,
    pub(super) lower: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MountType {
    Bind,
    Tmpfs,
    Proc,
    Dev,
    Mqueue,
    Symlink,
    File,
    Directory,
    Overlay,
    Mask,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Syscalls {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) default_action: Option<DefaultAction>,
    pub(super) default_errno: Option<String>,
    #[serde(default)]
    pub(super) allow: Vec<SyscallEntry>,
    #[serde(default)]
    pub(super) deny: Vec<SyscallEntry>,
    pub(super) import: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DefaultAction {
    Errno,
    Kill,
    Log,
    Allow,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum SyscallEntry {
    Name(String),
    Rule(SyscallRule),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SyscallRule {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) names: Vec<String>,
    #[serde(default)]
    pub(super) args: Vec<Arg>,
    pub(super) action: Option<DenyAction>,
    pub(super) errno: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DenyAction {
    Errno,
    Kill,
    Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arg {
    pub(super) index: u8,
    pub(super) op: Op,
    pub(super) value: u64,
    pub(super) mask: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    MaskedEq,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) mode: NetworkMode,
    pub(super) tcp_bind: Option<Vec<u16>>,
    pub(super) tcp_connect: Option<Vec<u16>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NetworkMode {
    None,
    Loopback,
    Host,
}

/// A field that may be absent, null (removes what is inherited) or a value.
pub(super) type Setting<T> = Option<Option<T>>;

fn setting<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Setting<T>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) wall_time: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) cpu_time: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) memory: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) swap: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) processes: Setting<u64>,
    pub(super) on_process_limit: Option<OnProcessLimit>,
    #[serde(deserialize_with = "setting")]
    pub(super) cpus: Setting<f64>,
    #[serde(deserialize_with = "setting")]
    pub(super) cpu_weight: Setting<u64>,
    #[serde(deserialize_with = "setting")]
    pub(super) cpuset: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) io_read: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) io_write: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) open_files: Setting<u64>,
    #[serde(deserialize_with = "setting")]
    pub(super) file_size: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) stack: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) core: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) output: Setting<String>,
    #[serde(deserialize_with = "setting")]
    pub(super) tmpfs_size: Setting<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnProcessLimit {
    Kill,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Environment {
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) inherit: Option<bool>,
    pub(super) keep: Vec<String>,
    #[serde(deserialize_with = "unique")]
    pub(super) set: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Stdio {
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stream {
    Inherit,
    Null,
    File(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppArmor {
    pub(super) policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeLinux {
    pub(super) label: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    Required,
    BestEffort,
    Off,
}

/// A map whose keys are all different: serde's would keep the last.
fn unique<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, V>, D::Error> {
    struct Visitor<V>(std::marker::PhantomData<V>);
    impl<'de, V: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry::<String, V>()? {
                if map.contains_key(&key) {
                    return Err(serde::de::Error::custom(format!("duplicate field `{key}`")));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Visitor(std::marker::PhantomData))
}
