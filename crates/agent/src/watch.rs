//! Waiting for a path to appear, without looking again and again: by inotify, and by the kernel's device events for
//! the file systems on which inotify says nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::{self, c_string, Result};

/// A path waited for.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// Says that a name was made in a directory on the way.
    pub names: OwnedFd,
    /// Says that a device came (or `names` again, where there is no such socket).
    pub devices: OwnedFd,
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance.
    pub fn new(path: &Path) -> Result<Self> {
        let names = sys::inotify()?;
        let devices = match sys::device_events() {
            Ok(socket) => socket,
            Err(_) => names.try_clone()?,
        };
        let watch = Self {
            path: path.to_owned(),
            names,
            devices,
        };
        watch.watch_nearest();
        Ok(watch)
    }

    /// Whether the path is there. Asked again after each event.
    pub fn is_there(&self) -> bool {
        let mut buf = [0; 4096];
        for fd in [&self.names, &self.devices] {
            while sys::read(fd.as_fd(), &mut buf).is_ok_and(|count| count > 0) {}
        }
        self.watch_nearest();
        self.path.exists()
    }

    /// Watches the directory nearest to the path that is there.
    fn watch_nearest(&self) {
        for directory in self.path.ancestors().skip(1) {
            let watched = c_string(directory.as_os_str().as_bytes())
                .and_then(|path| sys::inotify_watch(self.names.as_fd(), &path));
            if watched.is_ok() {
                return;
            }
        }
    }
}
