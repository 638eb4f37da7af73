//! A message that comes too early: QEMU enables the queues of a network card when it makes the card, and says only when
//! the guest's driver is there which features it takes.
//!
//! Until a frontend has said so there is no such message (vhost-user, "VHOST_USER_SET_VRING_ENABLE"), and the library
//! ends the connection. So before that, messages are looked at before the library takes them, and this one is taken here.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

const SET_VRING_ENABLE: u32 = 18;
/// Flags of a message: the version, an answer, the wish for one.
pub(crate) const VERSION: u32 = 1;
const REPLY: u32 = 4;
pub(crate) const NEED_REPLY: u32 = 8;
/// Bytes of the message, a header and the number of a queue with what it is set to; its answer has 8 bytes more than a header.
const SIZE: usize = 20;
const BODY: u32 = 8;

/// The message that comes first, if it enables or disables a queue: the queue's number, whether it is enabled, and whether
/// an answer is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Early {
    /// Of the queue.
    pub index: u32,
    /// What it is to be.
    pub is_enabled: bool,
    wants_reply: bool,
}

impl Early {
    /// Takes the message if it is the first one; waits for nothing.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn take(socket: &impl AsRawFd) -> io::Result<Option<Self>> {
        let mut bytes = [0; SIZE];
        let peek = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        if receive(socket.as_raw_fd(), &mut bytes, peek)? < SIZE {
            return Ok(None);
        }
        let word = |index: usize| {
            let word = bytes.get(4 * index..).and_then(<[u8]>::first_chunk);
            u32::from_ne_bytes(word.copied().unwrap_or_default())
        };
        let [code, flags, size, index, value] = [0, 1, 2, 3, 4].map(word);
        let is_this = code == SET_VRING_ENABLE && size == BODY && value <= 1;
        if !is_this || flags & !NEED_REPLY != VERSION {
            return Ok(None);
        }
        receive(socket.as_raw_fd(), &mut bytes, 0)?;
        Ok(Some(Early {
            index,
            is_enabled: value == 1,
            wants_reply: flags & NEED_REPLY != 0,
        }))
    }

    /// Answers it, if an answer is wanted.
    ///
    /// # Errors
    /// When the socket cannot be written.
    pub fn answer(&self, socket: &impl AsRawFd, is_done: bool) -> io::Result<()> {
        if !self.wants_reply {
            return Ok(());
        }
        acknowledge(socket, SET_VRING_ENABLE, is_done)
    }
}

/// Answers a message that wants to hear whether it was done.
///
/// # Errors
/// When the socket cannot be written.
pub(crate) fn acknowledge(socket: &impl AsRawFd, code: u32, is_done: bool) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(SIZE);
    for word in [code, VERSION | REPLY, BODY] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(u64::from(!is_done).to_ne_bytes());
    send(socket.as_raw_fd(), &mut bytes, 0)
}

fn message(bytes: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid message: no name, no parts, no descriptors.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bytes;
    message.msg_iovlen = 1;
    message
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

pub(crate) fn receive(fd: RawFd, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    let mut part = part(bytes);
    let mut message = message(&mut part);
    // SAFETY: the kernel writes into `bytes`, at most as many as there are.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    match usize::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            // The library says what it means.
            error if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            error => Err(error),
        },
    }
}

pub(crate) fn send(fd: RawFd, bytes: &mut [u8], flags: i32) -> io::Result<()> {
    let mut part = part(bytes);
    let message = message(&mut part);
    // SAFETY: the kernel reads `bytes`.
    match unsafe { libc::sendmsg(fd, &raw const message, flags | libc::MSG_NOSIGNAL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn spoken(words: [u32; 5]) -> Vec<u8> {
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn it_is_taken_and_answered_as_asked() {
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        for (flags, wants_reply) in [(1, false), (9, true)] {
            frontend.write_all(&spoken([18, flags, 8, 1, 1])).unwrap();
            let early = Early::take(&backend).unwrap().unwrap();
            let expected = Early {
                index: 1,
                is_enabled: true,
                wants_reply,
            };
            assert_eq!(early, expected);
            early.answer(&backend, true).unwrap();
        }
        let mut answer = [0; 20];
        frontend.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..], spoken([18, 5, 8, 0, 0]));
        frontend.set_nonblocking(true).unwrap();
        assert!(frontend.read(&mut answer).is_err());
    }

    #[test]
    fn others_are_left_where_they_are() {
        for words in [
            [17, 1, 8, 1, 1],
            [18, 1, 9, 1, 1],
            [18, 2, 8, 1, 1],
            [18, 1, 8, 1, 2],
        ] {
            let (mut frontend, mut backend) = UnixStream::pair().unwrap();
            assert_eq!(Early::take(&backend).unwrap(), None);
            frontend.write_all(&spoken(words)).unwrap();
            assert_eq!(Early::take(&backend).unwrap(), None);
            let mut left = [0; 20];
            backend.read_exact(&mut left).unwrap();
            assert_eq!(left[..], spoken(words));
        }
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        frontend.write_all(&spoken([18, 1, 8, 1, 1])[..19]).unwrap();
        assert_eq!(Early::take(&backend).unwrap(), None);
        drop(frontend);
        assert_eq!(Early::take(&backend).unwrap(), None);
    }
}
