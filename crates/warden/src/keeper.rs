//! The keeper of the supervisor's terminal: gives it its mode back when the supervisor cannot any more.
//!
//! It is the outer process, which nothing that is sent to the supervisor's process group reaches, and which sees the end of
//! its socket before the supervisor's parent hears of the death.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cloche_proto::keeper::{Mode, ToKeeper, MAX_PACKET};

use crate::sys::{self, Errno};

/// The keeper's end of its socket.
pub struct Keeper {
    socket: OwnedFd,
}

/// A terminal in raw mode.
struct Kept {
    terminal: OwnedFd,
    saved: Mode,
    raw: Mode,
}

impl Keeper {
    /// Takes the socket over.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Listens until the socket ends, or says what it may not, and restores the terminal that is raw then.
    pub fn keep(self) {
        let mut kept = None;
        while let Some(next) = self.hear() {
            kept = next;
        }
        if let Some(kept) = kept {
            kept.restore();
        }
    }

    /// Waits for a message; `None` at the end. The answer is what to restore from now on.
    fn hear(&self) -> Option<Option<Kept>> {
        let mut buffer = [0; MAX_PACKET];
        loop {
            let mut ready = [libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }];
            sys::poll(&mut ready).ok()?;
            let mut received = match sys::receive_packet(self.socket.as_fd(), &mut buffer, 1) {
                Err(Errno(libc::EAGAIN | libc::EINTR)) => continue,
                other => other.ok()?,
            };
            let message = ToKeeper::decode(buffer.get(..received.length)?).ok()?;
            return match (message, received.fds.pop()) {
                (ToKeeper::Raw { saved, raw }, Some(terminal)) => Some(Some(Kept {
                    terminal,
                    saved,
                    raw,
                })),
                (ToKeeper::Restored, None) => Some(None),
                _ => None,
            };
        }
    }
}

impl Kept {
    /// Sets the saved mode, unless somebody (a shell, the next program) has set another one meanwhile.
    fn restore(&self) {
        // This process is of another session: the kernel lets it, whatever is in the foreground there.
        let terminal = self.terminal.as_fd();
        if sys::terminal_mode(terminal).is_ok_and(|mode| mode.is_like(&self.raw)) {
            // A terminal that is gone has no mode any more.
            let _ = sys::set_terminal_mode(terminal, &self.saved);
        }
    }
}
