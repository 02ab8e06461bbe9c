//! Profile and host to a plan: pure data that `--dry-run` prints and [`crate::launch`] carries out. What this host
//! cannot do of what the profile asks is data too, and decides here whether the run is refused.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::host::{Files, Host};
use crate::layers::capabilities::CapabilitiesPlan;
use crate::layers::cgroup::CgroupPlan;
use crate::layers::landlock::LandlockPlan;
use crate::layers::mounts::MountsPlan;
use crate::layers::namespaces::NamespacesPlan;
use crate::layers::rlimits::{Rlimit, StandIns};
use crate::layers::seccomp::SeccompPlan;
use crate::layers::{Shortfall, capabilities, cgroup, landlock, mounts, namespaces, rlimits, seccomp};
use crate::profile::load::line_of;
use crate::profile::model::{Layer, LayerMode, Limits, NetworkMode, Origin, Profile, Stdio};
use crate::profile::variables::Variables;
use crate::report::model::{LayerReport, LayerState, Missing, Rule};

/// Everything that will be done, decided.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Command and arguments.
    #[serde(serialize_with = "lossy")]
    pub command: Vec<OsString>,
    /// Profile name.
    pub profile: String,
    /// SHA-256 over its files.
    pub sha256: String,
    /// Namespaces and ids.
    pub namespaces: NamespacesPlan,
    /// What is visible.
    pub mounts: MountsPlan,
    /// Which network.
    pub network: NetworkMode,
    /// Ids and rights.
    pub capabilities: CapabilitiesPlan,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Limits of the tree.
    pub cgroup: CgroupPlan,
    /// Landlock rules.
    pub landlock: Option<LandlockPlan>,
    /// System calls.
    pub seccomp: Option<SeccompPlan>,
    /// Security label: attribute below `/proc/thread-self/attr`, and what is written to it.
    pub label: Option<(String, String)>,
    /// Environment inside.
    #[serde(serialize_with = "lossy_pairs")]
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory inside.
    pub cwd: PathBuf,
    /// Standard streams.
    #[serde(skip)]
    pub stdio: Stdio,
    /// The limits that the supervisor keeps.
    pub limits: Limits,
    /// What each layer will enforce.
    pub layers: Vec<LayerReport>,
    /// Profile texts, to turn pointers into lines.
    #[serde(skip)]
    pub sources: Vec<crate::profile::model::SourceFile>,
    /// A root caller: trees are taken and mapped by the parent.
    #[serde(skip)]
    pub privileged: bool,
    /// The caller's uid, whose files a root caller's command may own.
    #[serde(skip)]
    pub caller: (u32, u32),
    #[serde(skip)]
    pub(crate) variables: Variables,
}

fn lossy<S: serde::Serializer>(words: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(words.iter().map(|w| w.to_string_lossy()))
}

fn lossy_pairs<S: serde::Serializer>(
    pairs: &[(OsString, OsString)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        pairs
            .iter()
            .map(|(k, v)| (k.to_string_lossy(), v.to_string_lossy())),
    )
}

impl Plan {
    /// Plans a run.
    ///
    /// # Errors
    /// A profile that cannot be carried out on any host, and [`ErrorKind::Refused`] for a required layer that
    /// cannot be enforced on this one.
    pub fn new(
        profile: &Profile,
        host: &Host,
        files: &dyn Files,
        command: Vec<OsString>,
        run: u32,
    ) -> Result<Plan, Error> {
        if command.first().is_none_or(|word| word.is_empty()) {
            let hint = "write it after the profile: sandbox run default -- ls -l";
            return Err(Error::new(
                ErrorKind::Failed,
                "there is no command to run",
                Some(hint.into()),
            ));
        }
        if let Some(bad) = command.iter().find(|word| word.as_bytes().contains(&0)) {
            return Err(Error::failed(format!("the argument {bad:?} holds a NUL byte")));
        }
        let variables = variables(profile, host);
        let expand = |text: &str| variables.expand(text).map_err(Error::failed);
        let mode = |layer| profile.layers.get(layer);
        let mut missing: Vec<(Layer, Shortfall)> = Vec::new();
        let mut note = |layer, list: Vec<Shortfall>| missing.extend(list.into_iter().map(|s| (layer, s)));

        let (namespaces, list) = namespaces::plan(profile, host, run);
        note(Layer::Namespaces, list);
        let applied = namespaces.unshared.contains(&"mount");
        let (mounts, list) = mounts::plan(profile, host, files, &variables, applied).map_err(|error| {
            let place = place(profile, error.origin());
            Error::new(ErrorKind::Failed, format!("{error} ({place})"), error.hint())
        })?;
        note(Layer::Mounts, list);
        let (capabilities, list) = capabilities::plan(profile, host, &namespaces).map_err(|unknown| {
            let meant = crate::profile::suggest::closest(&unknown.0, capabilities::NAMES.into_iter());
            let hint = meant.map(|m| format!("did you mean {m}?"));
            Error::new(
                ErrorKind::Failed,
                format!("there is no capability named {}", unknown.0),
                hint,
            )
        })?;
        note(Layer::Capabilities, list);

        let (cgroup, list) = match (mode(Layer::Cgroup), &host.cgroup) {
            (LayerMode::Off, _) => (CgroupPlan::default(), Vec::new()),
            (_, Ok(facts)) => cgroup::plan(&profile.limits, facts),
            (_, Err(_)) => cgroup::plan(&profile.limits, &cgroup::CgroupFacts::default()),
        };
        note(Layer::Cgroup, list);
        let limits = &profile.limits;
        let stand_ins = StandIns {
            memory: limits.memory_bytes.is_some() && !cgroup.limits_memory(),
            // Counted for each user of each user namespace since Linux 5.14; without one it would count all the
            // caller's processes.
            processes: limits.processes.is_some() && !cgroup.limits_processes() && namespaces.ids.is_some(),
            cpu_time: limits.cpu_time.is_some() && !cgroup.accounts_cpu(),
        };
        let rlimits = rlimits::plan(profile, host, stand_ins);
        let (landlock, list) = landlock::plan(profile, host, &mounts);
        note(Layer::Landlock, list);
        let network_mode = mode(Layer::Network);
        note(Layer::Network, network(profile, &namespaces, landlock.as_ref()));
        let seccomp = if mode(Layer::Seccomp) == LayerMode::Off {
            None
        } else {
            let families =
                (network_mode != LayerMode::Off).then_some((profile.network.mode, &profile.network.origin));
            Some(seccomp::plan(&profile.syscalls, families).map_err(|error| {
                let place = error
                    .origin()
                    .map_or(String::new(), |origin| format!(" ({})", place(profile, origin)));
                Error::new(ErrorKind::Failed, format!("{error}{place}"), error.hint())
            })?)
        };
        let (label, list) = label(profile, host);
        for (layer, shortfall) in list {
            note(layer, vec![shortfall]);
        }
        let cwd = mounts::normalise(Path::new(&expand(&profile.cwd)?));
        let environment = environment(profile, host, &variables)?;
        let layers = layer_reports(profile, &missing, |layer| {
            describe(
                layer,
                &namespaces,
                &mounts,
                profile,
                &capabilities,
                &rlimits,
                &cgroup,
                landlock.as_ref(),
                seccomp.as_ref(),
            )
        });
        refuse(profile, &missing)?;
        Ok(Plan {
            command,
            profile: profile.name.clone(),
            sha256: profile.sha256.clone(),
            namespaces,
            mounts,
            network: profile.network.mode,
            capabilities,
            rlimits,
            cgroup,
            landlock,
            seccomp,
            label,
            environment,
            cwd,
            stdio: profile.stdio.clone(),
            limits: profile.limits.clone(),
            layers,
            sources: profile.sources.clone(),
            privileged: host.privileged(),
            caller: (host.uid, host.gid),
            variables,
        })
    }

    /// The line of a profile that an origin points at.
    #[must_use]
    pub fn rule(&self, origin: &Origin) -> Rule {
        let source = self.sources.iter().find(|s| s.name == origin.file);
        Rule {
            file: origin.file.to_string(),
            line: source.and_then(|s| line_of(&s.text, &origin.pointer)),
            pointer: origin.pointer.clone(),
        }
    }

    /// How long a run may take on the clock.
    #[must_use]
    pub fn wall_time(&self) -> Option<Duration> {
        self.limits.wall_time
    }
}

fn place(profile: &Profile, origin: &Origin) -> String {
    let line = profile
        .sources
        .iter()
        .find(|s| s.name == origin.file)
        .and_then(|s| line_of(&s.text, &origin.pointer));
    match line {
        Some(line) => format!("{}:{line} {}", origin.file, origin.pointer),
        None => origin.file.to_string(),
    }
}

fn variables(profile: &Profile, host: &Host) -> Variables {
    let from = |name: &str, default: &str| host.variable(name).cloned().unwrap_or_else(|| default.into());
    Variables {
        values: vec![
            ("CWD", host.cwd.clone().into()),
            ("HOME", from("HOME", "/nonexistent")),
            ("USER", from("USER", "nobody")),
            ("TMPDIR", from("TMPDIR", "/tmp")),
            ("UID", host.uid.to_string().into()),
            ("GID", host.gid.to_string().into()),
            ("INNER_UID", profile.identity.uid.to_string().into()),
            ("INNER_GID", profile.identity.gid.to_string().into()),
            ("HOSTNAME", profile.identity.hostname.clone().into()),
        ],
    }
}

fn environment(
    profile: &Profile,
    host: &Host,
    variables: &Variables,
) -> Result<Vec<(OsString, OsString)>, Error> {
    let wanted = |name: &OsString| {
        profile.environment.inherit
            || profile
                .environment
                .keep
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => name.as_bytes().starts_with(prefix.as_bytes()),
                    None => name.as_bytes() == pattern.as_bytes(),
                })
    };
    let mut all: Vec<(OsString, OsString)> = host
        .environment
        .iter()
        .filter(|(name, _)| wanted(name))
        .cloned()
        .collect();
    for (name, value) in &profile.environment.set {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::failed(format!(
                "{name:?} is not a name of an environment variable"
            )));
        }
        let value = variables.expand(value).map_err(Error::failed)?;
        all.retain(|(other, _)| other.as_bytes() != name.as_bytes());
        all.push((name.into(), value));
    }
    Ok(all)
}

fn network(
    profile: &Profile,
    namespaces: &NamespacesPlan,
    landlock: Option<&LandlockPlan>,
) -> Vec<Shortfall> {
    if profile.layers.get(Layer::Network) == LayerMode::Off {
        return Vec::new();
    }
    let mut list = Vec::new();
    let network = &profile.network;
    let isolated = namespaces.unshared.contains(&"net");
    if network.mode != NetworkMode::Host && !isolated {
        list.push(Shortfall {
            what: "a network of its own".into(),
            why: "the profile makes no network namespace".into(),
            hint: "set namespaces.net to true, or network.mode to \"host\"".into(),
            total: false,
            tolerable: false,
        });
    }
    let ports = network.tcp_bind.is_some() || network.tcp_connect.is_some();
    if ports && network.mode != NetworkMode::None && landlock.is_none_or(|l| l.abi < 4) {
        list.push(Shortfall {
            what: "TCP port rules".into(),
            why: "they need Landlock ABI 4 (Linux 6.7)".into(),
            hint: "use network.mode \"none\", a newer kernel, or --best-effort network".into(),
            total: false,
            tolerable: false,
        });
    }
    list
}

/// Attribute file and text.
type Label = (String, String);

fn label(profile: &Profile, host: &Host) -> (Option<Label>, Vec<(Layer, Shortfall)>) {
    let mut list = Vec::new();
    let mut label = None;
    let absent = |name: &str| Shortfall {
        what: format!("{name} confinement"),
        why: format!("{name} is not active in this kernel"),
        hint: format!(
            "boot with it (lsm=…), or remove it from the profile, or pass --best-effort {}",
            name.to_lowercase()
        ),
        total: true,
        tolerable: false,
    };
    if let Some(apparmor) = profile
        .apparmor
        .as_ref()
        .filter(|_| profile.layers.get(Layer::Apparmor) != LayerMode::Off)
    {
        match &apparmor.policy {
            Some(policy) if host.lsm.iter().any(|l| l == "apparmor") => {
                label = Some(("apparmor/exec".into(), format!("exec {policy}")));
            }
            _ => list.push((Layer::Apparmor, absent("AppArmor"))),
        }
    }
    if let Some(selinux) = profile
        .selinux
        .as_ref()
        .filter(|_| profile.layers.get(Layer::Selinux) != LayerMode::Off)
    {
        if host.lsm.iter().any(|l| l == "selinux") {
            label = Some(("exec".into(), selinux.label.clone()));
        } else {
            list.push((Layer::Selinux, absent("SELinux")));
        }
    }
    (label, list)
}

fn refuse(profile: &Profile, missing: &[(Layer, Shortfall)]) -> Result<(), Error> {
    let fatal = missing
        .iter()
        .find(|(layer, s)| profile.layers.get(*layer) == LayerMode::Required && !s.tolerable);
    match fatal {
        None => Ok(()),
        Some((layer, s)) => Err(Error::new(
            ErrorKind::Refused,
            format!("{}: {} cannot be enforced here: {}", layer.name(), s.what, s.why),
            Some(s.hint.clone()),
        )),
    }
}

fn layer_reports(
    profile: &Profile,
    missing: &[(Layer, Shortfall)],
    describe: impl Fn(Layer) -> Option<String>,
) -> Vec<LayerReport> {
    Layer::ALL
        .into_iter()
        .map(|layer| {
            let list: Vec<&Shortfall> = missing
                .iter()
                .filter(|(l, _)| *l == layer)
                .map(|(_, s)| s)
                .collect();
            let asked = describe(layer);
            let state = if profile.layers.get(layer) == LayerMode::Off || asked.is_none() && list.is_empty() {
                LayerState::Off
            } else if list.iter().any(|s| s.total) {
                LayerState::Unavailable
            } else if list.is_empty() {
                LayerState::Enforced
            } else {
                LayerState::Partial
            };
            LayerReport {
                layer: layer.name().into(),
                state,
                detail: match state {
                    LayerState::Off => "not asked for".into(),
                    _ => asked.unwrap_or_default(),
                },
                missing: list
                    .iter()
                    .map(|s| Missing {
                        what: s.what.clone(),
                        why: s.why.clone(),
                        hint: s.hint.clone(),
                    })
                    .collect(),
            }
        })
        .collect()
}

#[expect(clippy::too_many_arguments, reason = "one part of the plan for each layer")]
fn describe(
    layer: Layer,
    namespaces: &NamespacesPlan,
    mounts: &MountsPlan,
    profile: &Profile,
    capabilities: &CapabilitiesPlan,
    rlimits: &[Rlimit],
    cgroup: &CgroupPlan,
    landlock: Option<&LandlockPlan>,
    seccomp: Option<&SeccompPlan>,
) -> Option<String> {
    match layer {
        Layer::Namespaces => (!namespaces.unshared.is_empty()).then(|| namespaces.unshared.join(" ")),
        Layer::Mounts => mounts
            .applied
            .then(|| format!("{} mounts in a root of its own", mounts.entries.len())),
        Layer::Network => {
            let ports = |list: &Option<Vec<u16>>| list.as_ref().map_or("any".into(), |l| format!("{l:?}"));
            Some(match profile.network.mode {
                NetworkMode::None => "none".into(),
                NetworkMode::Loopback => "loopback of its own".into(),
                NetworkMode::Host => format!(
                    "host; TCP bind {}, connect {}; UDP is not gated",
                    ports(&profile.network.tcp_bind),
                    ports(&profile.network.tcp_connect)
                ),
            })
        }
        Layer::Capabilities => (!capabilities.off).then(|| {
            let kept = if capabilities.kept.is_empty() {
                "none kept".into()
            } else {
                capabilities.kept.join(" ")
            };
            format!("{kept}; no_new_privs; host uid {}", namespaces.outer_uid)
        }),
        Layer::Rlimits => (!rlimits.is_empty()).then(|| {
            rlimits
                .iter()
                .map(|r| format!("{}={}", r.field, r.value))
                .collect::<Vec<_>>()
                .join(" ")
        }),
        Layer::Cgroup => (!cgroup.is_empty()).then(|| {
            let settings = cgroup.groups.iter().flat_map(|g| &g.settings);
            settings
                .map(|(file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
                .join(" ")
        }),
        Layer::Landlock => landlock.map(|l| format!("ABI {}, {} path rules", l.abi, l.paths.len())),
        Layer::Apparmor => profile
            .apparmor
            .as_ref()
            .map(|a| a.policy.clone().unwrap_or_default()),
        Layer::Selinux => profile.selinux.as_ref().map(|s| s.label.clone()),
        Layer::Seccomp => seccomp.map(|s| format!("{} system calls can pass", s.passing().len())),
    }
}
