//! What a device process can still reach by name, limited from inside by Landlock.
//!
//! It comes on top of the jail's root and namespaces and does not lean on them: where one of those is missing, files,
//! TCP, abstract Unix addresses and other processes' signals stay out of reach all the same. What was opened before is not
//! concerned. Older kernels know less of it, or nothing, and then less is limited: the jail's other parts do not need it.
//! Source: Documentation/userspace-api/landlock.rst.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::process;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: u32 = 1;

/// `LANDLOCK_ACCESS_FS_*`: bits 0 to 12 are known since the first version.
const FIRST_RIGHTS: u64 = (1 << 13) - 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const TO_READ: u64 = READ_FILE | READ_DIR;
/// All that changes files, but for making device nodes and for executing.
const TO_WRITE: u64 = WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE;

/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `_CONNECT_TCP`.
const TCP: u64 = 3;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `_SIGNAL`.
const SCOPES: u64 = 3;

/// A directory below which files stay reachable.
#[derive(Debug)]
pub(crate) struct Reach {
    pub root: CString,
    pub is_writable: bool,
}

/// `struct landlock_ruleset_attr`: what is refused unless a rule allows it. Older kernels take it as long as the fields
/// that they do not know are 0.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    files: u64,
    tcp: u64,
    scopes: u64,
}

impl Refused {
    fn new(version: i64) -> Self {
        let since = |first: i64, bits: u64| if version >= first { bits } else { 0 };
        Refused {
            files: FIRST_RIGHTS | since(2, REFER) | since(3, TRUNCATE) | since(5, IOCTL_DEV),
            tcp: since(4, TCP),
            scopes: since(6, SCOPES),
        }
    }
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    directory: i32,
}

/// Limits this process for good: no file by name but below `reach`, no TCP, no abstract Unix address and no signal
/// to others. A kernel that knows less of this limits less, one that knows nothing of it nothing.
///
/// # Errors
/// When the kernel has Landlock and refuses.
pub(crate) fn limit(reach: &[Reach]) -> io::Result<()> {
    // SAFETY: the kernel reads nothing when it is asked for the version.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            ASK_VERSION,
        )
    };
    if version < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // Not in this kernel, or not among its security modules.
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => Ok(()),
            _ => Err(error),
        };
    }
    if version == 1 && reach.iter().any(|reach| reach.is_writable) {
        // The first version lets nothing be renamed from one directory to another.
        return Ok(());
    }
    let refused = Refused::new(version);
    let size = size_of_val(&refused);
    // SAFETY: the kernel reads `size` bytes of `refused`.
    let rules = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const refused,
            size,
            0,
        )
    };
    let rules = i32::try_from(checked(rules)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    let rules = unsafe { OwnedFd::from_raw_fd(rules) };
    for reach in reach {
        let rights = if reach.is_writable {
            TO_READ | TO_WRITE
        } else {
            TO_READ
        };
        allow(&rules, &reach.root, rights & refused.files)?;
    }
    process::forbid_new_privileges()?;
    // SAFETY: no pointers.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })
        .map(drop)
}

/// Adds a rule: what is beneath `root` keeps these rights. Where there is no `root` there is nothing beneath it.
fn allow(rules: &OwnedFd, root: &CStr, rights: u64) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a nul byte.
    let directory = unsafe { libc::openat(libc::AT_FDCWD, root.as_ptr(), flags) };
    match checked(directory.into()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    // SAFETY: as above.
    let directory = unsafe { OwnedFd::from_raw_fd(directory) };
    let rule = Beneath {
        allowed: rights,
        directory: directory.as_raw_fd(),
    };
    // SAFETY: the kernel reads one `landlock_path_beneath_attr`, which `rule` is.
    let status = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0,
        )
    };
    checked(status).map(drop)
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each version of the kernel's is asked for what it knows and for nothing else.
    #[test]
    fn older_kernels_are_asked_for_less() {
        let bits = |version| {
            let Refused { files, tcp, scopes } = Refused::new(version);
            (files, tcp, scopes)
        };
        assert_eq!(bits(1), (0x1FFF, 0, 0));
        assert_eq!(bits(2), (0x3FFF, 0, 0));
        assert_eq!(bits(3), (0x7FFF, 0, 0));
        assert_eq!(bits(4), (0x7FFF, 3, 0));
        assert_eq!(bits(5), (0xFFFF, 3, 0));
        assert_eq!(bits(6), (0xFFFF, 3, 3));
        assert_eq!(bits(99), bits(6));
    }

    /// The structures are as long as the kernel's.
    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Refused>(), 24);
        assert_eq!(size_of::<Beneath>(), 12);
    }
}
