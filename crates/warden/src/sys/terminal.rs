//! A terminal's mode.

use std::os::fd::{AsRawFd, BorrowedFd};

use cloche_proto::keeper::Mode;

use super::{check, Errno, Result};

/// TCGETS.
pub fn terminal_mode(terminal: BorrowedFd<'_>) -> Result<Mode> {
    let mut mode = Mode([0; 36]);
    let bytes = mode.0.as_mut_ptr();
    // SAFETY: the kernel writes a struct termios, whose size is that of `mode`.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TCGETS, bytes) })?;
    Ok(mode)
}

/// TCSETS: at once, because waiting for the output to drain would hang on a terminal that nobody reads.
pub fn set_terminal_mode(terminal: BorrowedFd<'_>, mode: &Mode) -> Result<()> {
    loop {
        // SAFETY: the kernel reads a struct termios, whose size is that of `mode`.
        match check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TCSETS, mode.0.as_ptr()) }) {
            Err(Errno(libc::EINTR)) => {}
            result => return result.map(drop),
        }
    }
}
