//! Finding, reading and merging profile files.

#![expect(clippy::cast_possible_truncation, reason = "errno constants are small")]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::model::{
    self, Action, ArgOp, ArgTest, Layer, LayerMode, LayerModes, MountKind, Origin, Profile, SyscallRule,
};
use super::source::{self, Source};
use super::suggest::closest;
use super::units::{parse_duration, parse_size};
use crate::layers::seccomp::import::{ImportContext, import};
use crate::sys::Errno;

/// Largest profile file.
pub const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 16;

/// The built-in profiles: name and text.
pub const BUILTIN: &[(&str, &str)] = &[
    ("base", include_str!("../../profiles/base.json")),
    ("default", include_str!("../../profiles/default.json")),
    ("strict", include_str!("../../profiles/strict.json")),
    ("build", include_str!("../../profiles/build.json")),
    ("grade", include_str!("../../profiles/grade.json")),
    ("python", include_str!("../../profiles/python.json")),
    ("node", include_str!("../../profiles/node.json")),
    ("java", include_str!("../../profiles/java.json")),
    ("ci", include_str!("../../profiles/ci.json")),
    ("agent", include_str!("../../profiles/agent.json")),
    ("landlock-only", include_str!("../../profiles/landlock-only.json")),
];

/// Where profiles are looked for, in order, before the built-in ones.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Directories.
    pub directories: Vec<PathBuf>,
}

impl Search {
    /// `$XDG_CONFIG_HOME/sandbox/profiles` (or below `~/.config`), then `/etc/sandbox/profiles`.
    #[must_use]
    pub fn of_caller() -> Search {
        let config = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))
            .filter(|path| path.is_absolute());
        let directories = config
            .map(|path| path.join("sandbox/profiles"))
            .into_iter()
            .chain([PathBuf::from("/etc/sandbox/profiles")])
            .collect();
        Search { directories }
    }
}

/// Why a profile cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileError {
    /// File, and line and column where known: `p.json:3:7`.
    pub place: String,
    /// JSON pointer of the field, where known.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.pointer.is_empty() {
            write!(f, "{}: ", self.pointer)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ProfileError {}

fn error(place: impl Into<String>, message: impl Into<String>, hint: Option<String>) -> ProfileError {
    ProfileError {
        place: place.into(),
        pointer: String::new(),
        message: message.into(),
        hint,
    }
}

struct Loaded {
    name: Arc<str>,
    text: Arc<str>,
    source: Source,
    directory: Option<PathBuf>,
}

/// Loads a profile by name or path.
///
/// # Errors
/// With the place, and what to do.
pub fn load(name: &str, search: &Search) -> Result<Profile, ProfileError> {
    let mut files = Vec::new();
    gather(name, None, search, &mut Vec::new(), &mut files)?;
    build(name, files)
}

/// Loads a profile from text; `extends` names other profiles.
///
/// # Errors
/// As [`load`].
pub fn load_text(name: &str, text: &str, search: &Search) -> Result<Profile, ProfileError> {
    let mut files = Vec::new();
    let loaded = parse(name.into(), text.into(), None)?;
    gather_parsed(loaded, search, &mut vec![name.to_owned()], &mut files)?;
    build(name, files)
}

/// Turns a JSON pointer into a line, by walking the text.
#[must_use]
pub fn line_of(text: &str, pointer: &str) -> Option<u32> {
    let mut from = 0;
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        match part.parse::<usize>() {
            Ok(index) => from = element(text, from, index)?,
            Err(_) => from += text.get(from..)?.find(&format!("\"{part}\""))? + part.len() + 2,
        }
    }
    let line = text.get(..from)?.bytes().filter(|b| *b == b'\n').count() + 1;
    u32::try_from(line).ok()
}

/// Offset of the n-th element of the next array after `from`.
fn element(text: &str, from: usize, index: usize) -> Option<usize> {
    let start = from + text.get(from..)?.find('[')? + 1;
    let (mut depth, mut seen, mut string, mut escaped) = (0, 0, false, false);
    let first = start + text[start..].find(|c: char| !c.is_whitespace())?;
    if index == 0 {
        return Some(first);
    }
    for (at, c) in text[start..].char_indices() {
        match (string, c) {
            (true, _) if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => string = !string,
            (true, _) => {}
            (false, '[' | '{') => depth += 1,
            (false, ']' | '}') => depth -= 1,
            (false, ',') if depth == 0 => {
                seen += 1;
                if seen == index {
                    let next = start + at + 1;
                    return Some(next + text[next..].find(|c: char| !c.is_whitespace())?);
                }
            }
            _ => {}
        }
    }
    None
}

fn gather(
    name: &str,
    relative_to: Option<&Path>,
    search: &Search,
    chain: &mut Vec<String>,
    files: &mut Vec<Loaded>,
) -> Result<(), ProfileError> {
    if chain.iter().any(|n| n == name) {
        let circle = chain
            .iter()
            .map(String::as_str)
            .chain([name])
            .collect::<Vec<_>>()
            .join(" -> ");
        return Err(error(
            name,
            format!("profiles extend each other in a circle: {circle}"),
            None,
        ));
    }
    if chain.len() >= MAX_DEPTH {
        return Err(error(
            name,
            format!("more than {MAX_DEPTH} profiles extend one another"),
            None,
        ));
    }
    let loaded = find(name, relative_to, search)?;
    chain.push(name.to_owned());
    gather_parsed(loaded, search, chain, files)?;
    chain.pop();
    Ok(())
}

fn gather_parsed(
    loaded: Loaded,
    search: &Search,
    chain: &mut Vec<String>,
    files: &mut Vec<Loaded>,
) -> Result<(), ProfileError> {
    let bases = match &loaded.source.extends {
        None => vec![],
        Some(source::OneOrMany::One(name)) => vec![name.clone()],
        Some(source::OneOrMany::Many(names)) => names.clone(),
    };
    for base in bases {
        // A base that several others extend counts once, at its first place.
        gather(&base, loaded.directory.as_deref(), search, chain, files)?;
    }
    if !files.iter().any(|f| f.name == loaded.name) {
        files.push(loaded);
    }
    Ok(())
}

fn is_path(name: &str) -> bool {
    name.contains('/') || name.ends_with(".json")
}

fn find(name: &str, relative_to: Option<&Path>, search: &Search) -> Result<Loaded, ProfileError> {
    if is_path(name) {
        let path = relative_to.map_or_else(|| PathBuf::from(name), |directory| directory.join(name));
        return read(&path);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let hint = "a name has letters, digits, _ . and -; a path has a slash or ends in .json";
        return Err(error(
            format!("profile {name:?}"),
            "this is no profile name",
            Some(hint.into()),
        ));
    }
    for directory in &search.directories {
        let path = directory.join(format!("{name}.json"));
        if path.symlink_metadata().is_ok() {
            return read(&path);
        }
    }
    if let Some((_, text)) = BUILTIN.iter().find(|(n, _)| *n == name) {
        return parse(format!("builtin:{name}").into(), (*text).into(), None);
    }
    let names = BUILTIN.iter().map(|(n, _)| *n);
    let hint = match closest(name, names.clone()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("there are {}", names.collect::<Vec<_>>().join(", ")),
    };
    Err(error(
        format!("profile {name}"),
        "there is no such profile",
        Some(hint),
    ))
}

fn read(path: &Path) -> Result<Loaded, ProfileError> {
    let place = path.display().to_string();
    let fail = |e: std::io::Error| {
        let why = e
            .raw_os_error()
            .map_or_else(|| e.to_string(), |code| Errno::from_raw(code).desc().to_owned());
        error(&*place, format!("cannot read the profile: {why}"), None)
    };
    // Not blocking: a fifo must not hang us.
    let file = nix::fcntl::open(
        path,
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|e| fail(e.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(error(&*place, "a profile must be a regular file", None));
    }
    if metadata.len() > MAX_BYTES {
        return Err(error(
            &*place,
            format!(
                "the file has {} bytes; a profile has at most {MAX_BYTES}",
                metadata.len()
            ),
            None,
        ));
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o002 != 0
        || metadata.uid() != 0 && metadata.uid() != me
    {
        let hint = format!("chown it to you and `chmod go-w {}`", path.display());
        return Err(error(
            &*place,
            "others than you and root can change this profile",
            Some(hint),
        ));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|_| error(&*place, "the file is not UTF-8 text", None))?;
    let directory = std::path::absolute(path)
        .ok()
        .and_then(|p| p.parent().map(Path::to_path_buf));
    parse(place.as_str().into(), text.into(), directory)
}

fn parse(name: Arc<str>, text: Arc<str>, directory: Option<PathBuf>) -> Result<Loaded, ProfileError> {
    if text.contains("\\u0000") || text.contains('\0') {
        return Err(error(
            &*name,
            "the text holds a NUL character",
            Some("remove it".into()),
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let source = serde_path_to_error::deserialize(&mut deserializer)
        .and_then(|source: Source| {
            let end = deserializer.end();
            match end {
                Ok(()) => Ok(source),
                Err(e) => Err(serde_path_to_error::Error::new(
                    serde_path_to_error::Path::default_root(),
                    e,
                )),
            }
        })
        .map_err(|e| {
            let inner = e.inner();
            let full = inner.to_string();
            let message = full.split(" at line ").next().unwrap_or_default().to_owned();
            let pointer = e.path().to_string();
            ProfileError {
                place: format!("{name}:{}:{}", inner.line(), inner.column()),
                pointer: if pointer == "." {
                    String::new()
                } else {
                    format!("/{}", pointer.replace(['.', '['], "/").replace(']', ""))
                },
                hint: did_you_mean(&message),
                message,
            }
        })?;
    Ok(Loaded {
        name,
        text,
        source,
        directory,
    })
}

trait DefaultRoot {
    fn default_root() -> Self;
}

impl DefaultRoot for serde_path_to_error::Path {
    fn default_root() -> Self {
        serde_path_to_error::Track::new().path()
    }
}

/// serde lists what it expected; the nearest of that is what was meant.
fn did_you_mean(message: &str) -> Option<String> {
    let mut words = message.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    closest(wrong, words).map(|meant| format!("did you mean `{meant}`?"))
}

fn build(name: &str, files: Vec<Loaded>) -> Result<Profile, ProfileError> {
    let mut hasher = Sha256::new();
    let nowhere = Origin {
        file: "builtin:structure".into(),
        pointer: String::new(),
    };
    let mut profile = Profile {
        name: name.to_owned(),
        sha256: String::new(),
        description: String::new(),
        namespaces: model::Namespaces {
            user: true,
            mount: true,
            pid: true,
            net: true,
            ipc: true,
            uts: true,
            cgroup: true,
            time: false,
        },
        identity: model::Identity {
            uid: 1000,
            gid: 1000,
            id_count: 1,
            hostname: "sandbox".into(),
        },
        root: None,
        mounts: Vec::new(),
        cwd: "/".into(),
        syscalls: model::Syscalls {
            rules: Vec::new(),
            default_action: Action::Errno(libc::EPERM as u16),
            default_origin: nowhere.clone(),
        },
        capabilities: Vec::new(),
        network: model::Network {
            mode: model::NetworkMode::None,
            tcp_bind: None,
            tcp_connect: None,
            origin: nowhere,
        },
        limits: model::Limits::default(),
        environment: model::Environment::default(),
        stdio: model::Stdio::default(),
        apparmor: None,
        selinux: None,
        layers: LayerModes::default(),
        sources: Vec::new(),
    };
    for file in files {
        hasher.update(file.text.as_bytes());
        merge(&mut profile, &file)?;
        profile.sources.push(model::SourceFile {
            name: file.name,
            text: file.text,
        });
    }
    profile.sha256 = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    profile.mounts.sort_by_key(|mount| {
        mount.destination.matches('/').count() + mount.destination.contains("${") as usize * 2
    });
    Ok(profile)
}

struct At<'a>(&'a Loaded);

impl At<'_> {
    fn origin(&self, pointer: impl Into<String>) -> Origin {
        Origin {
            file: self.0.name.clone(),
            pointer: pointer.into(),
        }
    }

    fn error(&self, pointer: &str, message: impl Into<String>, hint: Option<String>) -> ProfileError {
        let line = line_of(&self.0.text, pointer).map_or(String::new(), |line| format!(":{line}"));
        ProfileError {
            place: format!("{}{line}", self.0.name),
            pointer: pointer.to_owned(),
            message: message.into(),
            hint,
        }
    }

    fn size(&self, pointer: &str, text: &str) -> Result<u64, ProfileError> {
        parse_size(text).map_err(|message| self.error(pointer, message, None))
    }

    fn errno(&self, pointer: &str, name: &str) -> Result<u16, ProfileError> {
        (1..=133)
            .find(|code| format!("{:?}", Errno::from_raw(*code)) == name)
            .and_then(|code| u16::try_from(code).ok())
            .ok_or_else(|| {
                self.error(
                    pointer,
                    format!("there is no errno {name}"),
                    Some("names are as in errno(3): EPERM, EACCES".into()),
                )
            })
    }
}

fn put<T>(to: &mut T, from: Option<T>) {
    if let Some(value) = from {
        *to = value;
    }
}

fn merge(profile: &mut Profile, loaded: &Loaded) -> Result<(), ProfileError> {
    let at = At(loaded);
    let s = &loaded.source;
    put(&mut profile.description, s.description.clone());
    let n = &s.namespaces;
    let p = &mut profile.namespaces;
    for (to, from) in [
        (&mut p.user, n.user),
        (&mut p.mount, n.mount),
        (&mut p.pid, n.pid),
        (&mut p.net, n.net),
        (&mut p.ipc, n.ipc),
        (&mut p.uts, n.uts),
        (&mut p.cgroup, n.cgroup),
        (&mut p.time, n.time),
    ] {
        put(to, from);
    }
    put(&mut profile.identity.uid, s.identity.uid);
    put(&mut profile.identity.gid, s.identity.gid);
    put(&mut profile.identity.id_count, s.identity.id_count);
    put(&mut profile.identity.hostname, s.identity.hostname.clone());
    if let Some(root) = &s.root {
        let access = match root.access {
            source::RootAccess::ReadOnly => model::RootAccess::ReadOnly,
            source::RootAccess::ReadWrite => model::RootAccess::ReadWrite,
            source::RootAccess::Overlay => model::RootAccess::Overlay,
        };
        profile.root = Some(model::Root {
            path: root.path.clone(),
            access,
            origin: at.origin("/root"),
        });
    }
    for (index, mount) in s.mounts.iter().enumerate() {
        merge_mount(profile, &at, index, mount)?;
    }
    put(&mut profile.cwd, s.cwd.clone());
    merge_syscalls(profile, &at)?;
    for capability in &s.capabilities {
        if !profile.capabilities.contains(capability) {
            profile.capabilities.push(capability.clone());
        }
    }
    if let Some(network) = &s.network {
        profile.network = model::Network {
            mode: match network.mode {
                source::NetworkMode::None => model::NetworkMode::None,
                source::NetworkMode::Loopback => model::NetworkMode::Loopback,
                source::NetworkMode::Host => model::NetworkMode::Host,
            },
            tcp_bind: network.tcp_bind.clone(),
            tcp_connect: network.tcp_connect.clone(),
            origin: at.origin("/network"),
        };
    }
    merge_limits(profile, &at)?;
    put(&mut profile.environment.inherit, s.environment.inherit);
    profile
        .environment
        .keep
        .extend(s.environment.keep.iter().cloned());
    profile.environment.set.extend(s.environment.set.clone());
    let stream = |stream: &source::Stream| match stream {
        source::Stream::Inherit => model::Stream::Inherit,
        source::Stream::Null => model::Stream::Null,
        source::Stream::File(path) => model::Stream::File(path.clone()),
    };
    put(&mut profile.stdio.stdin, s.stdio.stdin.as_ref().map(stream));
    put(&mut profile.stdio.stdout, s.stdio.stdout.as_ref().map(stream));
    put(&mut profile.stdio.stderr, s.stdio.stderr.as_ref().map(stream));
    if let Some(apparmor) = &s.apparmor {
        profile.apparmor = Some(model::AppArmor {
            policy: Some(apparmor.policy.clone()),
            origin: at.origin("/apparmor"),
        });
    }
    if let Some(selinux) = &s.selinux {
        profile.selinux = Some(model::SeLinux {
            label: selinux.label.clone(),
            origin: at.origin("/selinux"),
        });
    }
    for (name, mode) in &s.layers {
        let pointer = format!("/layers/{name}");
        let layer = layer(name)
            .map_err(|hint| at.error(&pointer, format!("there is no layer {name}"), Some(hint)))?;
        let mode = match mode {
            source::Mode::Required => LayerMode::Required,
            source::Mode::BestEffort => LayerMode::BestEffort,
            source::Mode::Off => LayerMode::Off,
        };
        profile.layers.modes.insert(layer, mode);
    }
    Ok(())
}

/// A layer by name; else a hint.
///
/// # Errors
/// The hint: the nearest name, or all.
pub fn layer(name: &str) -> Result<Layer, String> {
    let names = || Layer::ALL.iter().map(|layer| layer.name());
    Layer::ALL
        .into_iter()
        .find(|layer| layer.name() == name)
        .ok_or_else(|| match closest(name, names()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("layers are {}", names().collect::<Vec<_>>().join(", ")),
        })
}

fn merge_mount(
    profile: &mut Profile,
    at: &At<'_>,
    index: usize,
    m: &source::Mount,
) -> Result<(), ProfileError> {
    use source::MountType as T;
    let pointer = format!("/mounts/{index}");
    let missing = |field: &str| at.error(&pointer, format!("this mount needs {field:?}"), None);
    let destination = m
        .destination
        .clone()
        .or_else(|| if m.kind == T::Bind { m.source.clone() } else { None })
        .or_else(|| match m.kind {
            T::Proc => Some("/proc".into()),
            T::Dev => Some("/dev".into()),
            _ => None,
        })
        .ok_or_else(|| missing("destination"))?;
    if !destination.starts_with('/') && !destination.starts_with("${") {
        return Err(at.error(
            &pointer,
            format!("the destination {destination} is not absolute"),
            None,
        ));
    }
    if destination.split('/').any(|part| part == "..") {
        return Err(at.error(
            &pointer,
            format!("the destination {destination} holds \"..\""),
            None,
        ));
    }
    let mode = |default: u32| match &m.mode {
        None => Ok(default),
        Some(text) => u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| {
                at.error(
                    &pointer,
                    format!("{text:?} is not an octal mode"),
                    Some("write it as \"1777\"".into()),
                )
            }),
    };
    let size = m
        .size
        .as_deref()
        .map(|text| at.size(&format!("{pointer}/size"), text))
        .transpose()?;
    profile.mounts.retain(|other| other.destination != destination);
    let kind = match m.kind {
        T::None => return Ok(()),
        T::Bind => MountKind::Bind {
            source: m.source.clone().ok_or_else(|| missing("source"))?,
            writable: m.access == Some(source::Access::Rw),
            executable: m.executable.unwrap_or(true),
            optional: m.optional.unwrap_or(false),
            caller_owned: m.owner == Some(source::Owner::Caller),
        },
        T::Tmpfs => MountKind::Tmpfs {
            size_bytes: size,
            inodes: m.inodes,
            mode: mode(0o1777)?,
            executable: m.executable.unwrap_or(true),
        },
        T::Proc => MountKind::Proc {
            pid_only: m.subset == Some(source::Subset::Pid),
        },
        T::Dev => MountKind::Dev,
        T::Mqueue => MountKind::Mqueue,
        T::Symlink => MountKind::Symlink {
            to: m.to.clone().ok_or_else(|| missing("to"))?,
        },
        T::File => MountKind::File {
            content: m.content.clone().ok_or_else(|| missing("content"))?,
            mode: mode(0o644)?,
        },
        T::Directory => MountKind::Directory { mode: mode(0o755)? },
        T::Overlay => MountKind::Overlay {
            lower: m.lower.clone().ok_or_else(|| missing("lower"))?,
            size_bytes: size,
        },
        T::Mask => MountKind::Mask,
    };
    profile.mounts.push(model::Mount {
        destination,
        kind,
        origin: at.origin(pointer),
    });
    Ok(())
}

fn merge_syscalls(profile: &mut Profile, at: &At<'_>) -> Result<(), ProfileError> {
    let s = &at.0.source.syscalls;
    if let Some(action) = s.default_action {
        let errno = s.default_errno.as_deref().unwrap_or("EPERM");
        profile.syscalls.default_action = match action {
            source::DefaultAction::Errno => Action::Errno(at.errno("/syscalls/default_errno", errno)?),
            source::DefaultAction::Kill => Action::Kill,
            source::DefaultAction::Log => Action::Log,
            source::DefaultAction::Allow => Action::Allow,
        };
        profile.syscalls.default_origin = at.origin("/syscalls/default_action");
    } else if profile.syscalls.default_origin.pointer.is_empty() && !s.allow.is_empty() {
        profile.syscalls.default_origin = at.origin("/syscalls");
    }
    let mut rules = Vec::new();
    for (list, allow, entries) in [("deny", false, &s.deny), ("allow", true, &s.allow)] {
        for (index, entry) in entries.iter().enumerate() {
            let pointer = format!("/syscalls/{list}/{index}");
            rules.push(match entry {
                source::SyscallEntry::Name(name) => SyscallRule {
                    names: vec![name.clone()],
                    args: Vec::new(),
                    action: if allow {
                        Action::Allow
                    } else {
                        Action::Errno(libc::EPERM as u16)
                    },
                    origin: at.origin(pointer),
                },
                source::SyscallEntry::Rule(rule) => {
                    let action = match (allow, rule.action) {
                        (true, None) => Action::Allow,
                        (true, Some(_)) => {
                            return Err(at.error(&pointer, "\"action\" belongs into \"deny\"", None));
                        }
                        (false, None | Some(source::DenyAction::Errno)) => {
                            Action::Errno(at.errno(&pointer, rule.errno.as_deref().unwrap_or("EPERM"))?)
                        }
                        (false, Some(source::DenyAction::Kill)) => Action::Kill,
                        (false, Some(source::DenyAction::Log)) => Action::Log,
                    };
                    SyscallRule {
                        names: rule.names.clone(),
                        args: rule
                            .args
                            .iter()
                            .map(|arg| argument(at, &pointer, arg))
                            .collect::<Result<_, _>>()?,
                        action,
                        origin: at.origin(pointer),
                    }
                }
            });
        }
    }
    if let Some(path) = &s.import {
        let directory = at.0.directory.clone().unwrap_or_default();
        let path = directory.join(path);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            at.error(
                "/syscalls/import",
                format!("cannot read {}: {e}", path.display()),
                None,
            )
        })?;
        let arch = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else {
            "arm64"
        };
        let context = ImportContext {
            arch,
            capabilities: &at.0.source.capabilities,
            kernel: (6, 0),
        };
        let imported = import(&text, &context, &path.display().to_string())
            .map_err(|e| at.error("/syscalls/import", format!("{}: {e}", path.display()), None))?;
        rules.extend(imported.rules);
        if s.default_action.is_none() {
            profile.syscalls.default_action = imported.default_action;
        }
    }
    // A derived profile's rules stand before those it extends.
    rules.append(&mut profile.syscalls.rules);
    profile.syscalls.rules = rules;
    Ok(())
}

fn argument(at: &At<'_>, pointer: &str, arg: &source::Arg) -> Result<ArgTest, ProfileError> {
    let op = match (arg.op, arg.mask) {
        (source::Op::MaskedEq, Some(mask)) => ArgOp::MaskedEq { mask },
        (source::Op::MaskedEq, None) => return Err(at.error(pointer, "masked_eq needs \"mask\"", None)),
        (_, Some(_)) => return Err(at.error(pointer, "\"mask\" goes with masked_eq only", None)),
        (source::Op::Eq, None) => ArgOp::Eq,
        (source::Op::Ne, None) => ArgOp::Ne,
        (source::Op::Lt, None) => ArgOp::Lt,
        (source::Op::Le, None) => ArgOp::Le,
        (source::Op::Gt, None) => ArgOp::Gt,
        (source::Op::Ge, None) => ArgOp::Ge,
    };
    Ok(ArgTest {
        index: arg.index,
        op,
        value: arg.value,
    })
}

fn merge_limits(profile: &mut Profile, at: &At<'_>) -> Result<(), ProfileError> {
    let s = &at.0.source.limits;
    let limits = &mut profile.limits;
    let mut origins = std::mem::take(&mut limits.origins);
    let mut named = |field: &str| {
        let pointer = format!("/limits/{field}");
        origins.insert(field.to_owned(), at.origin(pointer.clone()));
        pointer
    };
    macro_rules! setting {
        ($($field:literal $from:expr => $to:expr, |$text:ident, $pointer:ident| $convert:expr;)*) => {$(
            if let Some(value) = &$from {
                let $pointer = named($field);
                $to = match value {
                    None => None,
                    Some($text) => Some($convert),
                };
            }
        )*};
    }
    let time =
        |pointer: &str, text: &str| parse_duration(text).map_err(|message| at.error(pointer, message, None));
    setting! {
        "wall_time" s.wall_time => limits.wall_time, |t, p| time(&p, t)?;
        "cpu_time" s.cpu_time => limits.cpu_time, |t, p| time(&p, t)?;
        "memory" s.memory => limits.memory_bytes, |t, p| at.size(&p, t)?;
        "swap" s.swap => limits.swap_bytes, |t, p| at.size(&p, t)?;
        "processes" s.processes => limits.processes, |t, _p| *t;
        "cpus" s.cpus => limits.cpus, |t, _p| *t;
        "cpu_weight" s.cpu_weight => limits.cpu_weight, |t, _p| *t;
        "cpuset" s.cpuset => limits.cpuset, |t, _p| t.clone();
        "io_read" s.io_read => limits.io_read_bytes_per_second, |t, p| at.size(&p, t)?;
        "io_write" s.io_write => limits.io_write_bytes_per_second, |t, p| at.size(&p, t)?;
        "open_files" s.open_files => limits.open_files, |t, _p| *t;
        "file_size" s.file_size => limits.file_size_bytes, |t, p| at.size(&p, t)?;
        "stack" s.stack => limits.stack_bytes, |t, p| at.size(&p, t)?;
        "core" s.core => limits.core_bytes, |t, p| at.size(&p, t)?;
        "output" s.output => limits.output_bytes, |t, p| at.size(&p, t)?;
        "tmpfs_size" s.tmpfs_size => limits.tmpfs_bytes, |t, p| at.size(&p, t)?;
    }
    if let Some(action) = s.on_process_limit {
        limits.on_process_limit = match action {
            source::OnProcessLimit::Kill => model::OnProcessLimit::Kill,
            source::OnProcessLimit::Deny => model::OnProcessLimit::Deny,
        };
    }
    limits.origins = origins;
    Ok(())
}
