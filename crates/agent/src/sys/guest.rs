//! What is done to the machine as a whole.

use std::ffi::CStr;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_long};

use super::{check, own, Errno, Result};

/// Sets the clock.
pub fn set_clock(realtime_ns: u64) -> Result<()> {
    let seconds = libc::time_t::try_from(realtime_ns / 1_000_000_000);
    let time = libc::timespec {
        tv_sec: seconds.map_err(|_| Errno(libc::EINVAL))?,
        tv_nsec: c_long::try_from(realtime_ns % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: `time` is live.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

/// Release of the running kernel.
pub fn kernel_release() -> Vec<u8> {
    // SAFETY: zero is a valid utsname, which uname fills with C strings.
    let name = unsafe {
        let mut name: libc::utsname = zeroed();
        libc::uname(&mut name);
        name
    };
    let release = name.release.iter().take_while(|c| **c != 0);
    release.map(|c| c.to_ne_bytes()[0]).collect()
}

/// mount(2); empty strings are null.
pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> Result<()> {
    let or_null = |s: &CStr| {
        if s.is_empty() {
            ptr::null()
        } else {
            s.as_ptr()
        }
    };
    // SAFETY: every pointer is null or a C string.
    check(unsafe {
        libc::mount(
            or_null(source),
            target.as_ptr(),
            or_null(fstype),
            flags,
            or_null(data).cast(),
        )
    })
    .map(drop)
}

/// umount2(2).
pub fn unmount(target: &CStr, flags: u32) -> Result<()> {
    let flags = i32::from_ne_bytes(flags.to_ne_bytes());
    // SAFETY: the path is a C string.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// chroot(2).
pub fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: a C string.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length are those of a live slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Credits a seed to the kernel's random numbers and takes it into use.
pub fn add_entropy(device: BorrowedFd<'_>, seed: &[u8]) -> Result<()> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let size = c_int::try_from(seed.len()).map_err(|_| Errno(libc::EINVAL))?;
    let bits = size.checked_mul(8).ok_or(Errno(libc::EINVAL))?;
    let mut request = Vec::with_capacity(seed.len() + 8);
    request.extend_from_slice(&bits.to_ne_bytes());
    request.extend_from_slice(&size.to_ne_bytes());
    request.extend_from_slice(seed);
    // SAFETY: `request` is a struct rand_pool_info with `size` bytes behind its two ints.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, request.as_ptr()) })?;
    // SAFETY: no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Loads a kernel module from a file; one that is loaded already is no error.
pub fn load_module(file: BorrowedFd<'_>, parameters: &CStr, compressed: bool) -> Result<()> {
    const COMPRESSED_FILE: c_int = 4;
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    // SAFETY: the parameters are a C string.
    let done = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    match done {
        0 => Ok(()),
        _ if Errno::last().0 == libc::EEXIST => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// Writes everything to the disks.
pub fn sync() {
    // SAFETY: no arguments.
    unsafe { libc::sync() };
}

/// Writes everything of one file system to its disk.
pub fn sync_file_system(place: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syncfs(place.as_raw_fd()) }).map(drop)
}

/// Writes everything of one file system to its disk and stops all that would be written to it later.
pub fn freeze_file_system(place: BorrowedFd<'_>) -> Result<()> {
    const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
    // SAFETY: the argument is ignored (linux/fs.h).
    check(unsafe { libc::ioctl(place.as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Restarts the machine (a machine without ACPI ends on a reset), or else switches it off.
pub fn reboot() {
    // SAFETY: no pointers.
    unsafe {
        libc::reboot(libc::RB_AUTOBOOT);
        libc::reboot(libc::RB_POWER_OFF);
    }
}

/// The type number of the file system at a path.
pub fn file_system_type(path: &CStr) -> Result<i64> {
    // SAFETY: zero is a valid statfs, and the path is a C string.
    unsafe {
        let mut info: libc::statfs = zeroed();
        check(libc::statfs(path.as_ptr(), &mut info))?;
        Ok(info.f_type)
    }
}

/// A non-blocking inotify instance.
pub fn inotify() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })
}

/// Watches a directory for new names.
pub fn inotify_watch(inotify: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let names = libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_ATTRIB | libc::IN_DELETE_SELF;
    inotify_add(inotify, path, names)
}

/// Watches a file for being opened.
pub fn inotify_watch_opens(inotify: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    inotify_add(inotify, path, libc::IN_OPEN)
}

fn inotify_add(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) }).map(drop)
}

/// A non-blocking socket that hears of the kernel's device events.
pub fn device_events() -> Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let socket =
        own(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) })?;
    // SAFETY: zero is a valid sockaddr_nl; its size is passed with it.
    unsafe {
        let mut address: libc::sockaddr_nl = zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = 1;
        check(libc::bind(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        ))?;
    }
    Ok(socket)
}
