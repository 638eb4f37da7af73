//! Where the agent writes what goes wrong: the kernel's log when it is a guest's first process, else standard error.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

static TO_KERNEL: AtomicBool = AtomicBool::new(false);

/// From now on everything goes to the kernel's log.
pub fn use_kernel_log() {
    TO_KERNEL.store(true, Ordering::Relaxed);
}

/// Writes one line. It may be lost; there is nobody to tell.
pub fn note(text: &str) {
    let line = format!("cloche-agent: {text}\n");
    if !TO_KERNEL.load(Ordering::Relaxed) {
        drop(std::io::Write::write_all(
            &mut std::io::stderr(),
            line.as_bytes(),
        ));
    } else if let Ok(log) = sys::open(c"/dev/kmsg", libc::O_WRONLY, 0) {
        use std::os::fd::AsFd;
        let _ = sys::write(log.as_fd(), line.as_bytes());
    }
}
