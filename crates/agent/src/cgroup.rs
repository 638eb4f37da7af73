//! Groups of processes: limits on the number of a job's processes. The cgroup file system is mounted only when the first is asked for.

use std::ffi::CStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::sys::{self, c_string, Errno, Result};

pub const ROOT: &str = "/sys/fs/cgroup";
const ROOT_C: &CStr = c"/sys/fs/cgroup";

/// A group of processes with a limit on their number.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a group for at most `pids_max` processes; returns it with its cgroup.procs file.
    ///
    /// # Errors
    /// The error number of mounting, making or setting it up.
    pub fn new(name: &str, pids_max: u32) -> Result<(Self, OwnedFd)> {
        ensure_mounted()?;
        // Already switched on, or refused below by the missing file.
        drop(fs::write(
            PathBuf::from(ROOT).join("cgroup.subtree_control"),
            "+pids",
        ));
        let path = PathBuf::from(ROOT).join(name);
        fs::create_dir(&path)?;
        let group = Self { path };
        fs::write(group.path.join("pids.max"), pids_max.to_string())?;
        let procs = c_string(format!("{ROOT}/{name}/cgroup.procs").as_bytes())?;
        let procs = sys::open(&procs, libc::O_WRONLY, 0)?;
        Ok((group, procs))
    }

    /// Removes the group. While processes are left in it it stays, and is given back.
    pub fn remove(self) -> Option<Self> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Some(self),
            _ => None,
        }
    }
}

/// Mounts the cgroup file system, unless it is.
///
/// # Errors
/// The error number of mounting it.
pub fn ensure_mounted() -> Result<()> {
    if sys::file_system_type(ROOT_C)? == libc::CGROUP2_SUPER_MAGIC {
        return Ok(());
    }
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    match sys::mount(c"cgroup2", ROOT_C, c"cgroup2", flags, c"") {
        Err(Errno(libc::EBUSY)) => Ok(()),
        other => other,
    }
}
