//! The warden's end of the supervisor's socket: whole packets with descriptors.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cloche_proto::warden::{ToSupervisor, MAX_DESCRIPTORS, MAX_PACKET};

use crate::sys::{self, Errno, Result};

/// Events kept for a supervisor that does not read; past it no more commands are taken.
const QUEUE_LIMIT: usize = 1024;

/// A packet from the supervisor.
pub struct Packet<'a> {
    /// The message.
    pub bytes: &'a [u8],
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors were lost on the way.
    pub cut: bool,
}

/// The socket to the supervisor with what waits to be sent.
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    queue: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

impl Socket {
    /// Takes the socket over.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            buffer: vec![0; MAX_PACKET + 1],
            queue: VecDeque::new(),
        }
    }

    /// What to poll for: commands unless too much waits to be sent, room when something waits.
    pub fn interest(&self) -> libc::pollfd {
        let read = if self.queue.len() < QUEUE_LIMIT {
            libc::POLLIN
        } else {
            0
        };
        let write = if self.queue.is_empty() {
            0
        } else {
            libc::POLLOUT
        };
        libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: read | write,
            revents: 0,
        }
    }

    /// Takes the next packet, or `None` at the end of file.
    ///
    /// # Errors
    /// `EAGAIN` when there is none; whatever recvmsg(2) says.
    pub fn receive(&mut self) -> Result<Option<Packet<'_>>> {
        let received = sys::receive_packet(self.fd.as_fd(), &mut self.buffer, MAX_DESCRIPTORS)?;
        // An empty packet cannot be told from the end of file; both end the domain.
        if received.length == 0 {
            return Ok(None);
        }
        let bytes = self
            .buffer
            .get(..received.length)
            .ok_or(Errno(libc::EBADMSG))?;
        Ok(Some(Packet {
            bytes,
            fds: received.fds,
            cut: received.cut,
        }))
    }

    /// Sends an event, or keeps it until there is room.
    ///
    /// # Errors
    /// Whatever sendmsg(2) says, `EPIPE` when the supervisor is gone.
    pub fn send(&mut self, message: &ToSupervisor, fd: Option<OwnedFd>) -> Result<()> {
        let bytes = message.encode().map_err(|_| Errno(libc::EMSGSIZE))?;
        self.queue.push_back((bytes, fd));
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn flush(&mut self) -> Result<()> {
        while let Some((bytes, fd)) = self.queue.front() {
            match send_packet(self.fd.as_fd(), bytes, fd.as_ref()) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno(libc::EAGAIN)) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// Sends one packet without waiting.
///
/// # Errors
/// `EAGAIN` when there is no room; whatever sendmsg(2) says.
fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<()> {
    sys::send_packet(socket, bytes, fd.map(AsFd::as_fd))
}
