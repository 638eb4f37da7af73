//! The confinement that needs no mounts: limits, ids, capabilities, system call filter.

use std::os::fd::OwnedFd;

use cloche_proto::warden::{jail_flags, Jail, ID_KEEP};

use crate::failure::{Failure, Outcome, Step};
use crate::namespace::IdMaps;
use crate::sys::{self, Errno};

/// Confines the calling process for good. `own_process` is its directory in the host's /proc.
///
/// # Errors
/// When one of the steps is refused; the process must not go on then.
pub fn confine(jail: &Jail, own_process: &OwnedFd) -> Outcome {
    sys::umask(0o022);
    set_limits(jail)?;
    take_ids(jail)?;
    if jail.namespaces & libc::CLONE_NEWUSER.unsigned_abs() != 0 {
        nest_user_namespace(own_process)?;
    }
    keep_capabilities(jail.keep_caps)?;
    if jail.flags & jail_flags::NO_NEW_PRIVS != 0 {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).step("no_new_privs")?;
    }
    if jail.seccomp.is_empty() {
        return Ok(());
    }
    sys::install_filter(&jail.seccomp).step("seccomp")
}

fn set_limits(jail: &Jail) -> Outcome {
    let no_core = jail.flags & jail_flags::NOT_DUMPABLE != 0;
    if no_core {
        // The exec makes the process dumpable again, so it is the limit that must forbid core files. One byte and not
        // none: it is what the kernel takes as "nothing to the host's core handler either" (core(5), pipes).
        match sys::set_rlimit(libc::RLIMIT_CORE, 1, 1) {
            // The limit is 0 already and cannot be raised.
            Ok(()) | Err(Errno(libc::EPERM)) => {}
            Err(errno) => return Err(Failure::new("rlimit core", errno)),
        }
    }
    for limit in &jail.rlimits {
        if !(no_core && limit.resource == libc::RLIMIT_CORE) {
            let what = format!("rlimit {}", limit.resource);
            sys::set_rlimit(limit.resource, limit.soft, limit.hard).step(what)?;
        }
    }
    Ok(())
}

/// Takes the ids on and keeps the permitted capabilities for the steps after it.
fn take_ids(jail: &Jail) -> Outcome {
    if jail.uid == ID_KEEP && jail.gid == ID_KEEP {
        return Ok(());
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).step("keep capabilities")?;
    match sys::clear_groups() {
        // An ordinary user's namespace denies it; the groups of the caller stay, and mean nothing new.
        Ok(()) | Err(Errno(libc::EPERM)) => {}
        Err(errno) => return Err(Failure::new("groups", errno)),
    }
    if jail.gid != ID_KEEP {
        sys::set_gid(jail.gid).step(format!("gid {}", jail.gid))?;
    }
    if jail.uid != ID_KEEP {
        sys::set_uid(jail.uid).step(format!("uid {}", jail.uid))?;
    }
    let permitted = sys::permitted_capabilities().step("capabilities")?;
    sys::set_capabilities(permitted, permitted, 0).step("capabilities")
}

fn nest_user_namespace(own_process: &OwnedFd) -> Outcome {
    let maps = IdMaps::own();
    sys::unshare(libc::CLONE_NEWUSER).step("make user namespace")?;
    // The files in /proc belong to root, who is nobody here, unless the process is dumpable.
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).step("dumpable")?;
    maps.write(own_process)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)
        .step("dumpable")
        .map(drop)
}

/// Cuts every set of capabilities down to `keep`; with `keep` left in the ambient set they survive the exec.
fn keep_capabilities(keep: u64) -> Outcome {
    let what = "capabilities";
    for capability in 0..64 {
        let kept = keep >> capability & 1 != 0;
        match sys::prctl(libc::PR_CAPBSET_READ, capability, 0) {
            // Past the last one the kernel knows.
            Err(Errno(libc::EINVAL)) if !kept => break,
            Err(errno) => return Err(Failure::new(what, errno)),
            Ok(1) if !kept => {
                sys::prctl(libc::PR_CAPBSET_DROP, capability, 0).step(what)?;
            }
            Ok(_) => {}
        }
    }
    sys::set_capabilities(keep, keep, keep).step(what)?;
    let [clear, raise] =
        [libc::PR_CAP_AMBIENT_CLEAR_ALL, libc::PR_CAP_AMBIENT_RAISE].map(i32::unsigned_abs);
    sys::prctl(libc::PR_CAP_AMBIENT, clear.into(), 0).step(what)?;
    for capability in (0..64).filter(|capability| keep >> capability & 1 != 0) {
        sys::prctl(libc::PR_CAP_AMBIENT, raise.into(), capability).step(what)?;
    }
    Ok(())
}
