//! The way to the host: reading, writing, and what comes in.

use std::os::fd::{AsFd, OwnedFd};

use cloche_proto::message::ToHost;
use cloche_proto::mux::{Event, TO_AGENT};

use crate::agent::{Agent, PORT};
use crate::log;
use crate::sys::{self, Errno};

/// Bytes read from the host before everything else has its turn.
const READ_TURN: usize = 262_144;

/// The way to the host.
#[derive(Debug)]
pub struct Port {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) listener: Option<OwnedFd>,
    /// The end of file is the end of the domain (a socket nobody can connect again).
    ends: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// epoll waits for room, too.
    waits_for_room: bool,
    /// When bytes came last, until a clock was set by it.
    pub(crate) heard_ns: Option<u64>,
}

impl Port {
    /// A byte stream; `ends` when nobody can make it anew.
    pub fn connected(fd: OwnedFd, ends: bool) -> Self {
        // A descriptor that stays blocking would only make the loop slower to react.
        let _ = sys::set_nonblocking(fd.as_fd());
        Self {
            fd: Some(fd),
            listener: None,
            ends,
            readable: true,
            writable: true,
            waits_for_room: false,
            heard_ns: Some(0),
        }
    }

    /// A socket on which connections come, one after the other.
    pub fn listening(listener: OwnedFd) -> Self {
        let _ = sys::set_nonblocking(listener.as_fd());
        Self {
            fd: None,
            listener: Some(listener),
            ends: false,
            readable: true,
            writable: true,
            waits_for_room: false,
            heard_ns: Some(0),
        }
    }
}

impl Agent {
    /// A host has connected: the connection before, if there still is one, is dead.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.port.listener else {
            return;
        };
        let mut newest = None;
        while let Ok(connection) = sys::accept(listener.as_fd()) {
            newest = Some(connection);
        }
        let Some(connection) = newest else { return };
        self.mux.disconnect();
        let added = sys::epoll_set(
            self.epoll.as_fd(),
            connection.as_fd(),
            PORT,
            libc::EPOLLIN,
            false,
        );
        if added.is_ok() {
            self.port.fd = Some(connection);
            self.port.readable = true;
            self.port.writable = true;
            self.port.waits_for_room = false;
        }
    }

    pub(crate) fn read_port(&mut self) {
        let mut left = READ_TURN;
        while self.port.readable && left > 0 {
            let Some(fd) = &self.port.fd else { return };
            match sys::read(fd.as_fd(), self.mux.input_space()) {
                Ok(0) => {
                    self.port.readable = false;
                    self.hung_up();
                }
                Ok(count) => {
                    left = left.saturating_sub(count);
                    if let Some(heard) = &mut self.port.heard_ns {
                        *heard = sys::clock_ns(libc::CLOCK_BOOTTIME);
                    }
                    self.mux.received(count);
                    self.take_events();
                }
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => self.port.readable = false,
                Err(_) => {
                    self.port.readable = false;
                    self.hung_up();
                }
            }
        }
    }

    /// Nobody is at the other end. A port tells when somebody is again, a listener when somebody connects.
    ///
    /// Of a port that proves nothing: it also reads as hung up when the bytes of a new connection are there already, and
    /// the word that somebody has connected is not (they come over two queues, and a restored machine gets both at
    /// once). The greeting read just before must not be forgotten then. What comes next after a real end is a preface.
    fn hung_up(&mut self) {
        if self.port.listener.is_some() {
            self.mux.disconnect();
            self.port.fd = None;
        }
        if self.port.ends && self.status.is_none() {
            self.status = Some(1);
        }
    }

    fn take_events(&mut self) {
        loop {
            let jobs = &mut self.jobs;
            let mut direct = |stream: u32, bytes: &[u8]| {
                let mut jobs = jobs.iter_mut().flatten();
                let job = jobs.find(|job| {
                    stream != TO_AGENT && [job.streams[0], job.streams[3]].contains(&stream)
                });
                job.map_or(0, |job| job.write_now(stream, bytes))
            };
            // The agent's role gives no errors: what is wrong loses the attach, and says so by an event.
            let Ok(Some(event)) = self.mux.next_event(&mut direct) else {
                return;
            };
            match event {
                Event::Attached { .. } => {
                    if !self.said_ready {
                        self.said_ready = true;
                        self.outbox.push(&ready());
                    }
                    // An answer that waits in the buffer of a port is not waited for by anybody else.
                    self.port.writable = true;
                }
                Event::Lost => {
                    log::note("the byte stream is malformed; waiting for the next attach")
                }
                Event::OtherVersion { version } => {
                    log::note(&format!("the host speaks version {version}"));
                }
                Event::Stopped { stream } => {
                    for job in self.jobs.iter_mut().flatten() {
                        job.stop_output(stream, &mut self.mux);
                    }
                }
                // An EXEC in the control stream makes the streams of frames that may follow it at once.
                Event::Data { stream: TO_AGENT } => self.read_control(),
                Event::Data { .. }
                | Event::Eof { .. }
                | Event::Credit { .. }
                | Event::Finished { .. } => {}
            }
        }
    }

    pub(crate) fn write_port(&mut self) {
        while self.port.writable {
            let Some(fd) = &self.port.fd else { return };
            let bytes = self.mux.output();
            if bytes.is_empty() {
                break;
            }
            match sys::write(fd.as_fd(), bytes) {
                Ok(count) => self.mux.sent(count),
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => self.port.writable = false,
                // The reading side finds out and deals with it.
                Err(_) => {
                    self.port.writable = false;
                    self.port.readable = true;
                }
            }
        }
        self.wait_for_room(!self.port.writable);
    }

    /// Waiting for room all the time would wake the loop after every single write to a virtio port.
    fn wait_for_room(&mut self, wanted: bool) {
        let Some(fd) = &self.port.fd else { return };
        if wanted == self.port.waits_for_room {
            return;
        }
        let room = if wanted { libc::EPOLLOUT } else { 0 };
        let interest = libc::EPOLLIN | room;
        if sys::epoll_set(self.epoll.as_fd(), fd.as_fd(), PORT, interest, true).is_ok() {
            self.port.waits_for_room = wanted;
        }
    }
}

fn ready() -> ToHost {
    ToHost::Ready {
        agent_version: env!("CARGO_PKG_VERSION").as_bytes().to_vec(),
        kernel: sys::kernel_release(),
        uptime_ns: sys::clock_ns(libc::CLOCK_BOOTTIME),
    }
}
