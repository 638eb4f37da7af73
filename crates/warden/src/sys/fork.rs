//! Making processes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_long, c_ulong, pid_t};

use super::{adopt_fd, check, Errno, Result};

/// Which side of a fork the caller is on.
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's process id and, when asked for, its pidfd.
    Parent(pid_t, Option<OwnedFd>),
}

/// fork(2) with `CLONE_*` namespace flags for the child. With `pidfd`, the parent gets one.
pub fn fork(namespaces: c_int, pidfd: bool) -> Result<Forked> {
    let mut fd: c_int = -1;
    let flags = namespaces | libc::SIGCHLD | if pidfd { libc::CLONE_PIDFD } else { 0 };
    let none: c_ulong = 0;
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child has a copy of everything. There is
    // one thread, so no lock can be held by another one. The kernel writes the pidfd to `fd`.
    let ret = check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_long::from(flags),
            none,
            &raw mut fd,
            none,
            none,
        )
    })?;
    if ret == 0 {
        return Ok(Forked::Child);
    }
    let pid = pid_t::try_from(ret).map_err(|_| Errno(libc::EIO))?;
    Ok(Forked::Parent(pid, pidfd.then(|| adopt_fd(fd))))
}

/// [`fork`] with a pidfd, for a child that begins in another cgroup: it uses nothing before it is counted there.
pub fn fork_into(namespaces: c_int, cgroup: BorrowedFd<'_>) -> Result<Forked> {
    /// Not in `c_int`'s range, so not among the constants for clone(2).
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut fd: c_int = -1;
    let flags = u64::from((namespaces | libc::CLONE_PIDFD).unsigned_abs()) | CLONE_INTO_CGROUP;
    // SAFETY: every field of the structure is a number, and 0 is what leaves it out.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = (&raw mut fd) as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: as in `fork`; the kernel reads as much of `args` as it is told and writes the pidfd to `fd`.
    let ret = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            std::mem::size_of::<libc::clone_args>(),
        )
    })?;
    if ret == 0 {
        return Ok(Forked::Child);
    }
    let pid = pid_t::try_from(ret).map_err(|_| Errno(libc::EIO))?;
    Ok(Forked::Parent(pid, Some(adopt_fd(fd))))
}
