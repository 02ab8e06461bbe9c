#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, pids and ioctl numbers come from the kernel as wider registers"
)]
#![expect(unsafe_code, reason = "credentials, prctl and Landlock calls")]
//! Credentials, capabilities, prctl(2) and Landlock as single calls.

use std::os::fd::RawFd;

use super::{Errno, check};

/// Highest capability number that this crate's masks can hold.
pub(crate) const CAP_MAX: u32 = 63;

fn prctl(option: i32, a: u64, b: u64) -> Result<i64, Errno> {
    // SAFETY: only options that take integers are passed by this file.
    check(unsafe { libc::prctl(option, a, b, 0, 0) }.into())
}

/// `PR_SET_NO_NEW_PRIVS` (Linux 3.5).
///
/// # Errors
/// Its errno.
pub(crate) fn no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// `PR_SET_PDEATHSIG`: SIGKILL when the thread that made us ends. Lost when ids change, so set after that.
///
/// # Errors
/// Its errno.
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map(drop)
}

/// `PR_SET_DUMPABLE` 0: `/proc/PID/{mem,fd,root,…}` belong to root, nobody may trace.
///
/// # Errors
/// Its errno.
pub(crate) fn undumpable() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// `PR_SET_CHILD_SUBREAPER` (Linux 3.4): orphans below become ours.
///
/// # Errors
/// Its errno.
pub(crate) fn subreaper() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// `PR_SET_SECUREBITS`.
///
/// # Errors
/// Its errno; EPERM without CAP_SETPCAP.
pub(crate) fn set_securebits(bits: u64) -> Result<(), Errno> {
    prctl(libc::PR_SET_SECUREBITS, bits, 0).map(drop)
}

/// `PR_SET_KEEPCAPS`: the permitted set survives a change of all uids away from 0.
///
/// # Errors
/// Its errno.
pub(crate) fn keep_capabilities() -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

/// `PR_CAPBSET_DROP`.
///
/// # Errors
/// Its errno; EINVAL above the kernel's last capability.
pub(crate) fn drop_bounding(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// `PR_CAPBSET_READ`.
///
/// # Errors
/// EINVAL above the kernel's last capability.
pub(crate) fn in_bounding(capability: u32) -> Result<bool, Errno> {
    prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0).map(|set| set == 1)
}

/// `PR_CAP_AMBIENT` with clear-all.
///
/// # Errors
/// Its errno.
pub(crate) fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// `PR_CAP_AMBIENT` with raise.
///
/// # Errors
/// Its errno; EPERM when it is not permitted and inheritable.
pub(crate) fn raise_ambient(capability: u32) -> Result<(), Errno> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_RAISE as u64,
        u64::from(capability),
    )
    .map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// capset(2): the same mask for effective and permitted, `inheritable` beside it.
///
/// # Errors
/// Its errno.
pub(crate) fn set_capabilities(mask: u64, inheritable: u64) -> Result<(), Errno> {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (mask >> shift) as u32,
        permitted: (mask >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and two data structs, all live.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// capget(2): (effective, permitted) of this process.
///
/// # Errors
/// Its errno.
pub(crate) fn capabilities() -> Result<(u64, u64), Errno> {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads a header and fills two data structs, all live.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok((
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
    ))
}

/// setresgid(2) with all three ids. The raw call: glibc's would signal other threads, which a copy has not.
///
/// # Errors
/// Its errno; EINVAL for an id that is not mapped.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// setresuid(2) with all three ids.
///
/// # Errors
/// Its errno; EINVAL for an id that is not mapped.
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// setgroups(2) with none.
///
/// # Errors
/// Its errno; EPERM where `/proc/PID/setgroups` says deny.
pub(crate) fn clear_groups() -> Result<(), Errno> {
    // SAFETY: a count of 0 reads no list.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) }).map(drop)
}

/// `KEYCTL_JOIN_SESSION_KEYRING` with a new anonymous keyring, so that the caller's keys are out of reach.
///
/// # Errors
/// Its errno; ENOSYS in a kernel without keys.
pub(crate) fn new_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
            0,
            0,
            0,
        )
    })
    .map(drop)
}

/// The Landlock ABI of this kernel: `landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)`.
///
/// # Errors
/// ENOSYS: not built in, or hidden by a filter; EOPNOTSUPP: switched off at boot.
pub(crate) fn landlock_abi() -> Result<u32, Errno> {
    const VERSION: u32 = 1;
    // SAFETY: this form takes a null attribute of size 0.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            VERSION,
        )
    })
    .map(|abi| u32::try_from(abi).unwrap_or(0))
}

/// landlock_add_rule(2), `LANDLOCK_RULE_PATH_BENEATH`.
///
/// # Errors
/// Its errno.
pub(crate) fn landlock_allow(ruleset: RawFd, access: u64, path: RawFd) -> Result<(), Errno> {
    const PATH_BENEATH: u32 = 1;
    #[repr(C, packed)]
    struct Attr {
        allowed_access: u64,
        parent_fd: i32,
    }
    let attr = Attr {
        allowed_access: access,
        parent_fd: path,
    };
    // SAFETY: `attr` is the kernel's packed struct landlock_path_beneath_attr.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset,
            PATH_BENEATH,
            &raw const attr,
            0u32,
        )
    })
    .map(drop)
}

/// landlock_restrict_self(2).
///
/// # Errors
/// Its errno; E2BIG after 16 nested rulesets.
pub(crate) fn landlock_restrict(ruleset: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) }).map(drop)
}
