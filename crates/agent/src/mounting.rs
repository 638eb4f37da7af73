//! Mounting what is on a disk, and the places where things are mounted.

use std::fs;

use crate::sys::{self, c_string, Errno, Result};

/// As the type of a file system: whichever is found.
const ANY_TYPE: &[u8] = b"auto";

/// Types that keep no owners of files: they are told whose all of them are.
const OWNERLESS: [&str; 2] = ["vfat", "msdos"];

/// What is said of the disk itself, or of a file system that is there: another type would not make it better. Anything
/// else is how one type or another finds that it does not fit.
const TELLING: [i32; 8] = [
    libc::ENOENT,
    libc::ENOTBLK,
    libc::ENXIO,
    libc::EACCES,
    libc::EPERM,
    libc::EROFS,
    libc::EUCLEAN,
    libc::EBADMSG,
];

/// Mounts a file system; one of [`ANY_TYPE`] as whichever is found.
///
/// # Errors
/// The error number of the kernel; EINVAL for a disk that no type fits.
pub fn mount(fstype: &[u8], source: &[u8], target: &[u8], flags: u64, data: &[u8]) -> Result<()> {
    if fstype == ANY_TYPE {
        return mount_any(source, target, flags, data);
    }
    sys::mount(
        &c_string(source)?,
        &c_string(target)?,
        &c_string(fstype)?,
        flags,
        &c_string(data)?,
    )
}

/// Mounts a disk whatever the type of its file system, by trying each that the kernel knows.
///
/// # Errors
/// EINVAL when none fits; else the first of [`TELLING`].
fn mount_any(source: &[u8], target: &[u8], flags: u64, data: &[u8]) -> Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let mut reason = Errno(libc::EINVAL);
    for name in types_of_disks(&fs::read_to_string("/proc/filesystems")?) {
        let words = if OWNERLESS.contains(&name) { data } else { b"" };
        let done = sys::mount(
            &source,
            &target,
            &c_string(name.as_bytes())?,
            flags,
            &c_string(words)?,
        );
        match done {
            Ok(()) => return Ok(()),
            Err(errno) if reason.0 == libc::EINVAL && TELLING.contains(&errno.0) => reason = errno,
            Err(_) => {}
        }
    }
    Err(reason)
}

/// The names in /proc/filesystems of what needs a device.
fn types_of_disks(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.strip_prefix('\t'))
}

/// Fails unless `path` is a directory below `root` that is found without a symbolic link on the way from there.
///
/// # Errors
/// ELOOP for a link, ENOENT or ENOTDIR for what is no directory.
pub fn check_place(root: &[u8], path: &[u8]) -> Result<()> {
    let root = sys::open(&c_string(root)?, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    sys::open_beneath(&root, &c_string(path)?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_types_that_need_a_device_are_tried() {
        let list = "nodev\tproc\n\text4\nnodev\ttmpfs\n\tsquashfs\n";
        let types: Vec<_> = types_of_disks(list).collect();
        assert_eq!(types, ["ext4", "squashfs"]);
    }

    #[test]
    fn a_place_is_a_directory_without_links_on_the_way() {
        let root = std::env::temp_dir().join(format!("cloche-place-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("/", root.join("a/out")).unwrap();
        let look = |path: &[u8]| check_place(root.as_os_str().as_encoded_bytes(), path);
        assert_eq!(look(b"a/b"), Ok(()));
        assert_eq!(look(b"link"), Err(Errno(libc::ELOOP)));
        assert_eq!(look(b"link/b"), Err(Errno(libc::ELOOP)));
        assert_eq!(look(b"a/out/usr"), Err(Errno(libc::ELOOP)));
        assert_eq!(look(b"a/none"), Err(Errno(libc::ENOENT)));
        assert_eq!(look(b"file"), Err(Errno(libc::ENOTDIR)));
        fs::remove_dir_all(root).unwrap();
    }
}
