//! The process that the targets run in: what it may do to the machine, and what it has open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Once;

/// Bytes that a file may have: no input fills the disk.
pub const MAX_FILE: u64 = 8 << 20;

/// Bounds what the process may do, once.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = libc::rlimit {
            rlim_cur: MAX_FILE,
            rlim_max: MAX_FILE,
        };
        // SAFETY: the kernel only reads the limit, and both signals are ignored, not handled.
        unsafe {
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        }
    });
}

/// Open descriptors, and what they are.
pub fn open_fds() -> BTreeMap<i32, PathBuf> {
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
        panic!("/proc is needed")
    };
    listing
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            // The listing's own.
            (!target.starts_with("/proc")).then_some(())?;
            Some((entry.file_name().to_str()?.parse().ok()?, target))
        })
        .collect()
}
