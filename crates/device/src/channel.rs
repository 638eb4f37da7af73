//! The frontend's ear: a socket over which a device says that its configuration space has changed
//! (vhost-user, "VHOST_USER_SET_BACKEND_REQ_FD" and "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG").
//!
//! The library takes the socket and can say other things over it, but not this one. A frontend hands it over while the two
//! agree on features, so it is taken here before that is done, as [`crate::early`] takes its message.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::early::{acknowledge, receive, send, NEED_REPLY, VERSION};
use crate::inherited::file_type;

const SET_BACKEND_REQ_FD: u32 = 21;
const CONFIG_CHANGE_MSG: u32 = 2;
/// Bytes of a message without a body.
const HEAD: usize = 12;

/// The socket.
#[derive(Debug)]
pub(crate) struct Channel(File);

struct Socket(RawFd);

impl ScmSocket for Socket {
    fn socket_fd(&self) -> RawFd {
        self.0
    }
}

impl Channel {
    /// Takes the message that brings one if it is the next, and answers it; waits for nothing. `Some(None)` is a message
    /// that brings no socket.
    ///
    /// # Errors
    /// When the frontend's socket cannot be read or written.
    pub fn take(socket: &impl AsRawFd) -> io::Result<Option<Option<Self>>> {
        let fd = socket.as_raw_fd();
        let mut head = [0; HEAD];
        let peek = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        if receive(fd, &mut head, peek)? < HEAD {
            return Ok(None);
        }
        let word = |index: usize| {
            let word = head.get(4 * index..).and_then(<[u8]>::first_chunk);
            u32::from_ne_bytes(word.copied().unwrap_or_default())
        };
        let [code, flags, size] = [0, 1, 2].map(word);
        if code != SET_BACKEND_REQ_FD || size != 0 || flags & !NEED_REPLY != VERSION {
            return Ok(None);
        }
        let file = Socket(fd).recv_with_fd(&mut head)?.1;
        let is_socket = |file: &File| file_type(file).is_ok_and(|kind| kind == libc::S_IFSOCK);
        let channel = file.filter(is_socket).map(Channel);
        if flags & NEED_REPLY != 0 {
            acknowledge(socket, SET_BACKEND_REQ_FD, channel.is_some())?;
        }
        Ok(Some(channel))
    }

    /// Says that the configuration space may be another; a frontend that does not listen misses it.
    pub fn say_changed(&self) {
        let mut bytes = Vec::with_capacity(HEAD);
        for word in [CONFIG_CHANGE_MSG, VERSION, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        if let Err(error) = send(self.0.as_raw_fd(), &mut bytes, libc::MSG_DONTWAIT) {
            log::warn!("the frontend does not hear of a change: {error}");
        }
    }
}

/// What the frontend knows of the configuration space, and how it hears of another.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    channel: Option<Channel>,
    is_told: bool,
}

impl Ear {
    /// Speaks over this channel from now on; without one there is nobody to be told.
    pub fn set(&mut self, channel: Option<Channel>) {
        self.channel = channel;
    }

    /// The frontend has asked: it knows.
    pub fn asked(&mut self) {
        self.is_told = true;
    }

    /// A queue runs. QEMU connects again and asks nothing, and hears of a change only then.
    pub fn runs(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            if let Some(channel) = &self.channel {
                channel.say_changed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn spoken(words: [u32; 3]) -> Vec<u8> {
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn say(frontend: &UnixStream, words: [u32; 3], fd: RawFd) {
        let bytes = spoken(words);
        assert_eq!(frontend.send_with_fd(&bytes[..], fd).unwrap(), HEAD);
    }

    #[test]
    fn a_socket_is_taken_answered_and_spoken_to() {
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        let (mut ear, mouth) = UnixStream::pair().unwrap();
        say(&frontend, [21, 9, 0], mouth.as_raw_fd());
        drop(mouth);
        let channel = Channel::take(&backend).unwrap().unwrap().unwrap();
        let mut answer = [0; 20];
        frontend.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..12], spoken([21, 5, 8]));
        assert_eq!(answer[12..], [0; 8]);
        channel.say_changed();
        let mut said = [0; HEAD];
        ear.read_exact(&mut said).unwrap();
        assert_eq!(said[..], spoken([2, 1, 0]));
        drop(ear);
        channel.say_changed();
    }

    #[test]
    fn what_is_no_socket_is_refused_and_other_messages_are_left() {
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        assert!(Channel::take(&backend).unwrap().is_none());
        let null = File::open("/dev/null").unwrap();
        say(&frontend, [21, 9, 0], null.as_raw_fd());
        assert!(Channel::take(&backend).unwrap().unwrap().is_none());
        let mut answer = [0; 20];
        frontend.read_exact(&mut answer).unwrap();
        assert_eq!(answer[12], 1);
        for words in [[20, 1, 0], [21, 2, 0], [21, 1, 8]] {
            let (mut frontend, mut backend) = UnixStream::pair().unwrap();
            frontend.write_all(&spoken(words)).unwrap();
            assert!(Channel::take(&backend).unwrap().is_none());
            let mut left = [0; HEAD];
            backend.read_exact(&mut left).unwrap();
            assert_eq!(left[..], spoken(words));
        }
    }
}
