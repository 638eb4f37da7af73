//! `statx` and `openat` with what a file server needs of them.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::io::{AsRawFd, FromRawFd, RawFd};

use virtiofsd::fuse::Attr;

/// Which file of the host something is. The mount belongs to it: a directory mounted at two places is two directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Device number.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// Number of the mount (0 where the kernel does not tell).
    pub mount: u64,
}

/// What `statx` told.
pub struct Stat {
    /// Which file it is.
    pub key: Key,
    /// File type and permissions.
    pub mode: u32,
    raw: libc::statx,
}

impl Stat {
    /// File type (`S_IFMT` bits).
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Owner on the host: user and group.
    #[must_use]
    pub fn owner(&self) -> (u32, u32) {
        (self.raw.stx_uid, self.raw.stx_gid)
    }

    /// The same as FUSE wants it, with another inode number and owner.
    #[must_use]
    pub fn to_attr(&self, ino: u64, owner: (u32, u32)) -> Attr {
        let raw = &self.raw;
        Attr {
            ino,
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            atime: raw.stx_atime.tv_sec as u64,
            mtime: raw.stx_mtime.tv_sec as u64,
            ctime: raw.stx_ctime.tv_sec as u64,
            atimensec: raw.stx_atime.tv_nsec,
            mtimensec: raw.stx_mtime.tv_nsec,
            ctimensec: raw.stx_ctime.tv_nsec,
            mode: self.mode,
            nlink: raw.stx_nlink,
            uid: owner.0.into(),
            gid: owner.1.into(),
            rdev: libc::makedev(raw.stx_rdev_major, raw.stx_rdev_minor) as u32,
            blksize: raw.stx_blksize,
            flags: 0,
        }
    }
}

/// Asks about `name` in `dir`, or about `dir` itself when the name is empty; follows no link.
///
/// # Errors
/// The kernel's.
pub fn stat_at(dir: &File, name: &CStr) -> io::Result<Stat> {
    const MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name ends with a nul byte and the kernel writes one statx structure into `raw`.
    let result = unsafe {
        libc::statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags,
            MASK,
            raw.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid statx structure, and the kernel has filled it in.
    let raw = unsafe { raw.assume_init() };
    let mount = if raw.stx_mask & libc::STATX_MNT_ID == 0 {
        0
    } else {
        raw.stx_mnt_id
    };
    let dev = libc::makedev(raw.stx_dev_major, raw.stx_dev_minor);
    Ok(Stat {
        key: Key {
            dev,
            ino: raw.stx_ino,
            mount,
        },
        mode: u32::from(raw.stx_mode),
        raw,
    })
}

/// Opens `name` in `dir`; the last component is never followed when it is a link.
///
/// # Errors
/// The kernel's.
pub fn open_at(dir: RawFd, name: &CStr, flags: libc::c_int) -> io::Result<File> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: the name ends with a nul byte; without O_CREAT there is no further argument.
    let fd = unsafe { libc::openat(dir, name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Reads the link `name` in `dir`.
///
/// # Errors
/// The kernel's.
pub fn read_link_at(dir: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let mut target = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most `target.len()` bytes into `target`.
    let length = unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    target.truncate(length as usize);
    Ok(target)
}
