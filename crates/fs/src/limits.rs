//! Open descriptors: how many the process may have, and how many of them belong to the guest.

use std::io;

/// Descriptors kept back for the server itself: sockets, event descriptors, guest memory (one for each region), and
/// those a request opens and closes again.
pub const RESERVED_FDS: u64 = 64;

/// The smallest limit the server starts with.
pub const MIN_FDS: u64 = 2 * RESERVED_FDS;

/// Raises the soft limit of open files to the hard limit, and returns how many of them this server may use: all, or `wanted`.
///
/// # Errors
/// When the limits cannot be read or set, or when fewer than [`MIN_FDS`] would be left.
pub fn raise_fd_limit(wanted: Option<u64>) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit into `limit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let usable = wanted.unwrap_or(limit.rlim_max).min(limit.rlim_max);
    if usable < MIN_FDS {
        let text = format!("at most {usable} open files are allowed, {MIN_FDS} are needed");
        return Err(io::Error::other(text));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit and is only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usable)
}
