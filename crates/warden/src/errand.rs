//! Changes in the mount tree of a process that runs: shares that come and go.
//!
//! The process itself has no right to mount anything and needs none. A child of PID 1 enters its mount namespace, does
//! one thing there and ends; PID 1 stays where it is, and never waits for a file system that does not answer.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::failure::{Failure, Outcome, Step};
use crate::namespace;
use crate::root::{self, Path};
use crate::sys::{self, Errno};

/// What is to be done.
pub enum Errand {
    /// Show what a descriptor refers to at a new place.
    Mount {
        /// Opened in the supervisor's mount namespace.
        source: OwnedFd,
        /// Where, a directory that does not exist yet.
        path: Vec<u8>,
        /// `bind_flags`.
        flags: u32,
    },
    /// Take away what is at a place, and the place.
    Unmount {
        /// Where.
        path: Vec<u8>,
    },
}

/// Does it in the mount namespace of the process behind `pidfd`, tells `report` what failed, and ends.
pub fn run(errand: &Errand, pidfd: &OwnedFd, report: &OwnedFd) -> ! {
    let result = match errand {
        Errand::Mount {
            source,
            path,
            flags,
        } => mount(source, path, *flags, pidfd),
        Errand::Unmount { path } => unmount(path, pidfd),
    };
    let bytes = match result {
        Ok(()) => Failure::new("", Errno(0)).to_bytes(),
        Err(failure) => failure.to_bytes(),
    };
    // If it cannot be written PID 1 is gone, and so is this process in a moment.
    let _ = sys::write_all(report.as_fd(), &bytes);
    sys::exit_now(0)
}

fn mount(source: &OwnedFd, path: &[u8], flags: u32, pidfd: &OwnedFd) -> Outcome {
    let place = Path::new(path)?;
    let what = place.what("mount ");
    let host = root::open_directory(c"/")?;
    let own_process = namespace::process_directory(c"/proc/self")?;
    // The name may lead to something else by now: what is copied is the very directory that was opened.
    let again = root::reopen(source.as_fd(), &host, &own_process).step("find the directory")?;
    let (copy, is_directory) = root::copy_mount(again.as_fd(), flags).step(what.as_slice())?;
    if !is_directory {
        return Err(Failure::new(what, Errno(libc::ENOTDIR)));
    }
    sys::enter_mount_namespace(pidfd.as_fd()).step("enter the mount namespace")?;
    let tree = writable_tree(&what)?;
    let name = relative(&place)?;
    sys::mkdir_at(tree.as_fd(), &name, 0o755).step(what.as_slice())?;
    let attached = target(&place, &tree, &name, &what)
        .and_then(|target| sys::attach_mount(copy.as_fd(), target.as_fd()).step(what.as_slice()));
    if attached.is_err() {
        // Nothing was mounted, so it is empty; the reason why is what counts.
        let _ = sys::rmdir_at(tree.as_fd(), &name);
    }
    attached
}

fn unmount(path: &[u8], pidfd: &OwnedFd) -> Outcome {
    let place = Path::new(path)?;
    let what = place.what("unmount ");
    sys::enter_mount_namespace(pidfd.as_fd()).step("enter the mount namespace")?;
    // At once and with all that is mounted below: what the process still holds of it is its own to let go.
    match sys::detach_mount(&place.name().step(what.as_slice())?) {
        // Not there, or nothing mounted there: a MOUNT that was broken off.
        Ok(()) | Err(Errno(libc::ENOENT | libc::EINVAL)) => {}
        Err(errno) => return Err(Failure::new(what, errno)),
    }
    match sys::rmdir_at(writable_tree(&what)?.as_fd(), &relative(&place)?) {
        Ok(()) | Err(Errno(libc::ENOENT)) => Ok(()),
        Err(errno) => Err(Failure::new(what, errno)),
    }
}

/// The root of the namespace once more, without what is mounted in it and writable, for this process only: the one that
/// everybody there sees stays read-only.
fn writable_tree(what: &[u8]) -> Outcome<OwnedFd> {
    let root = root::open_directory(c"/")?;
    let tree = sys::clone_mount(root.as_fd(), false).step(what)?;
    sys::make_writable(tree.as_fd()).step(what)?;
    Ok(tree)
}

/// The new directory where everybody there sees it. In what was bound from the host it would be another one: `EROFS`.
fn target(place: &Path<'_>, tree: &OwnedFd, name: &CStr, what: &[u8]) -> Outcome<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let made = sys::open_at(tree.as_raw_fd(), name, flags, 0).step(what)?;
    let root = root::open_directory(c"/")?;
    let seen = sys::open_in_root(root.as_fd(), &place.name().step(what)?, flags);
    match (seen, sys::stat(made.as_fd())) {
        (Ok(seen), Ok(made)) if sys::stat(seen.as_fd()) == Ok(made) => Ok(seen),
        _ => Err(Failure::new(what, Errno(libc::EROFS))),
    }
}

/// The place as seen from the root.
fn relative(place: &Path<'_>) -> Outcome<CString> {
    let name = place.name().step("path")?;
    sys::c_string(name.to_bytes().get(1..).unwrap_or_default()).step("path")
}

/// What an errand's pipe said: `None` while it is still under way.
pub fn read_report(pipe: &OwnedFd) -> Option<Result<(), Failure>> {
    let mut report = [0; 4096];
    match sys::read(pipe.as_fd(), &mut report) {
        Err(Errno(libc::EAGAIN)) => None,
        Err(errno) => Some(Err(Failure::new("pipe", errno))),
        // It was killed: nobody knows how far it had come.
        Ok(0) => Some(Err(Failure::new("broken off", Errno(libc::EINTR)))),
        Ok(count) => {
            let failure = Failure::from_bytes(report.get(..count).unwrap_or_default());
            Some(if failure.errno == Errno(0) {
                Ok(())
            } else {
                Err(failure)
            })
        }
    }
}
