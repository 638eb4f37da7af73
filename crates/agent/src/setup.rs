//! The steps of SETUP that are done at once.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    chown, fchown, lchown, symlink, DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt,
    PermissionsExt,
};
use std::path::{Component, Path, PathBuf};

use cloche_proto::message::Step;

use crate::log;
use crate::mounting;
use crate::sys::{self, c_string, Errno, Result};

const BIND_FILE: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";
const DIRECTORY_MODE: u32 = 0o755;

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Does one step.
///
/// # Errors
/// The error number, also for the steps that only the agent itself can do.
pub fn perform(step: &Step) -> Result<()> {
    match step {
        Step::BindDevice { name } => Ok(write_existing(Path::new(BIND_FILE), name)?),
        Step::Mkdir {
            path,
            mode,
            uid,
            gid,
        } => {
            let path = path_of(path);
            // In a guest that runs, one that exists is somebody's. What is made is root's and has that mode already.
            if make_place(path)? && (*mode, *uid, *gid) != (DIRECTORY_MODE, 0, 0) {
                own_directory(path, *mode, *uid, *gid)?;
            }
            Ok(())
        }
        Step::Mount {
            fstype,
            source,
            target,
            flags,
            data,
        } => mounting::mount(fstype, source, target, *flags, data),
        Step::Unmount { target, flags } => sys::unmount(&c_string(target)?, *flags),
        Step::SwitchRoot { path } => switch_root(path_of(path)),
        Step::WriteFile {
            path,
            mode,
            uid,
            gid,
            content,
        } => Ok(write_file(path_of(path), *mode, (*uid, *gid), content)?),
        Step::Symlink { target, path } => Ok(make_link(path_of(target), path_of(path))?),
        Step::CopyTree { from, to, uid, gid } => {
            Ok(copy_tree(path_of(from), path_of(to), (*uid, *gid))?)
        }
        Step::CopyOnce { from, to, uid, gid } => {
            copy_once(path_of(from), path_of(to), (*uid, *gid))
        }
        Step::Settle { path } => {
            let place = sys::open(&c_string(path)?, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            sys::freeze_file_system(place.as_fd())
        }
        Step::Hostname { name } => sys::set_hostname(name),
        Step::Entropy { seed } => {
            let device = sys::open(c"/dev/random", libc::O_RDWR, 0)?;
            sys::add_entropy(device.as_fd(), seed)
        }
        Step::Loopback => sys::loopback_up(),
        Step::Interface {
            name,
            address,
            prefix,
            gateway,
        } => sys::interface_up(name, *address, *prefix, *gateway),
        Step::Sysctl { path, value } => set_kernel_setting(path_of(path), value),
        Step::CheckPlace { root, path } => mounting::check_place(root, path),
        Step::PutFirst {
            path,
            mode,
            content,
        } => Ok(put_first(path_of(path), *mode, content)?),
        Step::Clock { .. }
        | Step::Rlimit { .. }
        | Step::WaitPath { .. }
        | Step::Freeze
        | Step::Thaw => Err(Errno(libc::ENOSYS)),
    }
}

/// Whether a path is there. A drive that had nothing in it when its driver was bound is looked into by that.
pub fn is_there(path: &[u8]) -> bool {
    let found = fs::metadata(path_of(path));
    if found
        .as_ref()
        .is_ok_and(|found| found.file_type().is_block_device())
    {
        // What is wrong with it shows when it is used.
        drop(File::open(path_of(path)));
    }
    found.is_ok()
}

/// Sets the clock to the time it was when the first SETUP was read from the port, and what has passed since: all that
/// the agent does for the first time takes an emulated machine long.
pub fn set_clock(realtime_ns: u64, heard_ns: Option<u64>) -> Result<()> {
    let now = sys::clock_ns(libc::CLOCK_BOOTTIME);
    sys::set_clock(realtime_ns.saturating_add(now.saturating_sub(heard_ns.unwrap_or(now))))
}

/// The step in a few words, for an error message.
pub fn describe(step: &Step) -> Vec<u8> {
    let (word, subject): (&str, &[u8]) = match step {
        Step::BindDevice { name } => ("bind device", name),
        Step::Mkdir { path, .. } => ("make directory", path),
        Step::Mount { target, .. } => ("mount", target),
        Step::Unmount { target, .. } => ("unmount", target),
        Step::Freeze => ("freeze", b""),
        Step::Thaw => ("thaw", b""),
        Step::CopyOnce { to, .. } => ("copy once", to),
        Step::Settle { path } => ("settle", path),
        Step::CheckPlace { path, .. } => ("look for", path),
        Step::PutFirst { path, .. } => ("write", path),
        Step::SwitchRoot { path } => ("switch root", path),
        Step::WriteFile { path, .. } => ("write", path),
        Step::Symlink { path, .. } => ("link", path),
        Step::CopyTree { to, .. } => ("copy tree", to),
        Step::Hostname { name } => ("host name", name),
        Step::Clock { .. } => ("clock", b""),
        Step::Entropy { .. } => ("entropy", b""),
        Step::Loopback => ("loopback", b""),
        Step::Interface { name, .. } => ("network card", name),
        Step::Sysctl { path, .. } => ("sysctl", path),
        Step::Rlimit { .. } => ("rlimit", b""),
        Step::WaitPath { path, .. } => ("wait for", path),
    };
    let subject = &subject[..subject.len().min(1024)];
    [word.as_bytes(), b" ", subject]
        .concat()
        .trim_ascii_end()
        .to_vec()
}

fn write_existing(path: &Path, content: &[u8]) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(content)
}

/// Makes a directory, and what is missing above it; false when it exists.
///
/// Trying takes an emulated machine less long than looking what is there, and this less than the standard library's way.
fn make_place(path: &Path) -> std::io::Result<bool> {
    let make = || fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path);
    let made = match (make(), above(path)) {
        (Err(error), Some(above)) if error.kind() == ErrorKind::NotFound => {
            make_place(above)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The directory that a path names another one in.
fn above(path: &Path) -> Option<&Path> {
    let bytes = path.as_os_str().as_bytes();
    let slash = bytes.iter().rposition(|byte| *byte == b'/')?;
    (slash > 0).then(|| path_of(&bytes[..slash]))
}

fn make_directory(path: &Path, mode: u32, uid: u32, gid: u32) -> std::io::Result<()> {
    make_place(path)?;
    own_directory(path, mode, uid, gid)
}

fn own_directory(path: &Path, mode: u32, uid: u32, gid: u32) -> std::io::Result<()> {
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
}

fn switch_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    for (old, new) in [
        (c"/dev", c"dev"),
        (c"/proc", c"proc"),
        (c"/sys", c"sys"),
        (c"/run", c"run"),
    ] {
        move_mount(old, new)?;
    }
    sys::mount(c".", c"/", c"", libc::MS_MOVE, c"")?;
    sys::chroot(c".")?;
    Ok(std::env::set_current_dir("/")?)
}

/// Moves what is mounted on one directory to another one, which is made if it is missing. Nothing mounted there is no error.
fn move_mount(old: &CStr, new: &CStr) -> Result<()> {
    let move_it = || sys::mount(old, new, c"", libc::MS_MOVE, c"");
    let moved = match move_it() {
        Err(Errno(libc::ENOENT)) => {
            fs::create_dir(path_of(new.to_bytes()))?;
            move_it()
        }
        other => other,
    };
    match moved {
        Err(Errno(libc::EINVAL | libc::ENOENT)) if !is_mount_point(path_of(old.to_bytes())) => {
            Ok(())
        }
        other => other,
    }
}

/// Whether there is a directory that is of another file system than the root.
fn is_mount_point(path: &Path) -> bool {
    let root = fs::metadata("/").map(|root| root.dev());
    fs::metadata(path).is_ok_and(|found| root.is_ok_and(|root| found.dev() != root))
}

fn write_file(path: &Path, mode: u32, owner: (u32, u32), content: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(mode & 0o7777)
        .custom_flags(libc::O_NOFOLLOW);
    let mut new = options.clone();
    new.create_new(true);
    let mut file = match new.open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match fs::remove_file(path) {
            Ok(()) => new.open(path)?,
            // A mount point, or a file of the kernel's own, is written to where it is.
            Err(_) => options.truncate(true).open(path)?,
        },
        other => other?,
    };
    file.write_all(content)?;
    set_owner_and_mode(&file, mode, owner)
}

fn set_owner_and_mode(file: &File, mode: u32, owner: (u32, u32)) -> std::io::Result<()> {
    fchown(file, Some(owner.0), Some(owner.1))?;
    file.set_permissions(Permissions::from_mode(mode & 0o7777))
}

/// The rest of a file that is longer would have to be held in memory.
const LONGEST_KEPT: u64 = 1 << 20;

/// A link is replaced by a file with what it led to.
fn put_first(path: &Path, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let mut whole = content.to_vec();
    let mut owner = (mode, 0, 0);
    // Not to wait for the other end of a pipe.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(file) => {
            let found = file.metadata()?;
            if !found.is_file() || found.len() > LONGEST_KEPT {
                return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
            }
            owner = (found.mode(), found.uid(), found.gid());
            file.take(LONGEST_KEPT).read_to_end(&mut whole)?;
        }
    }
    write_file(path, owner.0, (owner.1, owner.2), &whole)
}

fn make_link(target: &Path, path: &Path) -> std::io::Result<()> {
    match symlink(target, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            symlink(target, path)
        }
        other => other,
    }
}

/// Copies files, directories and links; anything else in the tree is left out, and so is what may not be read: one
/// closed file must not keep a machine from starting. Not recursive: a deep tree must not fill the stack.
fn copy_tree(from: &Path, to: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    let mut waiting: Vec<(PathBuf, PathBuf)> = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = waiting.pop() {
        let entries = match fs::read_dir(&from) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                leave_out(&from);
                continue;
            }
            other => other?,
        };
        for entry in entries {
            // A file server may say so only now.
            let entry = match entry {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    leave_out(&from);
                    break;
                }
                other => other?,
            };
            let copy = to.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let mode = entry.metadata()?.mode();
                make_directory(&copy, mode, owner.0, owner.1)?;
                waiting.push((entry.path(), copy));
            } else if kind.is_symlink() {
                make_link(&fs::read_link(entry.path())?, &copy)?;
                lchown(&copy, Some(owner.0), Some(owner.1))?;
            } else if kind.is_file() {
                copy_file(&entry.path(), &copy, owner)?;
            }
        }
    }
    Ok(())
}

/// Copies a directory beside its place and gives it its name when all of it is on the disk.
fn copy_once(from: &Path, to: &Path, owner: (u32, u32)) -> Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Ok(());
    }
    let mut beside = to.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    make_directory(&beside, fs::metadata(from)?.mode(), owner.0, owner.1)?;
    copy_tree(from, &beside, owner)?;
    sys::sync_file_system(File::open(&beside)?.as_fd())?;
    Ok(fs::rename(&beside, to)?)
}

fn leave_out(path: &Path) {
    log::note(&format!(
        "{} may not be read and is left out",
        path.display()
    ));
}

fn copy_file(from: &Path, to: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    let mut source = match File::open(from) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            leave_out(from);
            return Ok(());
        }
        other => other?,
    };
    let mode = source.metadata()?.mode();
    // What cannot be removed is dealt with when it is opened.
    drop(fs::remove_file(to));
    let mut copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o7777)
        .open(to)?;
    match std::io::copy(&mut source, &mut copy) {
        // A file server that is asked for no open file refuses the first read.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            leave_out(from);
            return fs::remove_file(to);
        }
        other => other?,
    };
    set_owner_and_mode(&copy, mode, owner)
}

fn set_kernel_setting(path: &Path, value: &[u8]) -> Result<()> {
    let is_plain = |part| matches!(part, Component::Normal(_));
    if !path.components().all(is_plain) {
        return Err(Errno(libc::EINVAL));
    }
    match write_existing(&Path::new("/proc/sys").join(path), value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}
