//! System calls about mounts.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_char, c_uint, c_ulong};

use super::{check, check_fd, Errno, Result};

/// Changes how mounts spread (`MS_PRIVATE`, `MS_SLAVE`), for the whole tree.
pub fn set_propagation(flag: c_ulong) -> Result<()> {
    let nothing: *const c_char = std::ptr::null();
    // SAFETY: the kernel takes no source, type or data for a change of propagation.
    check(unsafe {
        libc::mount(
            nothing,
            c"/".as_ptr(),
            nothing,
            flag | libc::MS_REC,
            nothing.cast(),
        )
    })
    .map(drop)
}

/// A new, detached mount of `fstype` with these parameters and `MOUNT_ATTR_*` flags. What is `optional` is left out
/// when the kernel does not know it.
pub fn new_mount(
    fstype: &CStr,
    parameters: &[(&CStr, &CStr)],
    optional: Option<(&CStr, &CStr)>,
    attributes: u64,
) -> Result<OwnedFd> {
    // SAFETY: `fstype` ends with NUL.
    let context = check_fd(unsafe {
        libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC)
    })?;
    let configure = |command: c_uint, key: *const c_char, value: *const c_char| {
        // SAFETY: `key` and `value` are NUL-terminated or null, as the command wants.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        })
    };
    for (key, value) in parameters {
        configure(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    if let Some((key, value)) = optional {
        match configure(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr()) {
            Err(Errno(libc::EINVAL)) | Ok(_) => {}
            Err(errno) => return Err(errno),
        }
    }
    configure(
        libc::FSCONFIG_CMD_CREATE,
        std::ptr::null(),
        std::ptr::null(),
    )?;
    // SAFETY: takes integers only.
    check_fd(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

/// A detached copy of the mount that holds what `fd` refers to, with that as its root.
pub fn clone_mount(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let recurse = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = (recurse | libc::AT_EMPTY_PATH).unsigned_abs()
        | libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is empty and ends with NUL.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Adds `MOUNT_ATTR_*` flags to a mount. None is ever taken away, so flags that the kernel has locked stay.
pub fn add_mount_attributes(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> Result<()> {
    change_mount(mount, attributes, 0, recursive)
}

/// Makes a detached mount, and not the one it is a copy of, writable.
pub fn make_writable(mount: BorrowedFd<'_>) -> Result<()> {
    change_mount(mount, 0, libc::MOUNT_ATTR_RDONLY, false)
}

fn change_mount(mount: BorrowedFd<'_>, set: u64, clear: u64, recursive: bool) -> Result<()> {
    let change = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let recurse = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is empty and ends with NUL; the pointer and the size are those of `change`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            recurse | libc::AT_EMPTY_PATH,
            &raw const change,
            std::mem::size_of_val(&change),
        )
    })
    .map(drop)
}

/// Attaches a detached mount to the place `target` refers to.
pub fn attach_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: both paths are empty and end with NUL.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// pivot_root(2).
pub fn pivot_root(new: &CStr, old: &CStr) -> Result<()> {
    // SAFETY: both paths end with NUL.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) }).map(drop)
}

/// Takes a mount and everything below it out of the tree. A link in the last component is not followed.
pub fn detach_mount(path: &CStr) -> Result<()> {
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}

/// Moves the calling process into the mount namespace of the process behind `pidfd`, to the root there.
pub fn enter_mount_namespace(pidfd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::setns(pidfd.as_raw_fd(), libc::CLONE_NEWNS) }).map(drop)
}
