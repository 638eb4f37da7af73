//! The front as the start-up crate sees it: frames between two queues and a stream.
//!
//! Nothing is kept but one buffer in each direction. A peer that does not read, and a guest that gives no buffers, are waited
//! for: what they are sent then waits where it comes from, in the guest's queue or in the socket, which are bounded
//! both. So the front loses no frame that is in order while both sides live, and the sides see how fast the other is. Frames
//! are given back to the guest when they are in the buffer: what is there when the process dies is lost, as on any wire.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use cloche_device::{
    Broken, Chain, Device, Memory, Over, Progress, Request, Turn, Vring, Watch, Written,
};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MTU;
use vm_memory::{Address, Bytes};

use crate::frame::{received_header, Dropped, Reason, Rules, ETHERNET, VIRTIO_HEADER};
use crate::stream::{self, Incoming, Outgoing};

/// The queue of what the guest receives, and the one of what it sends.
pub const RECEIVE: usize = 0;
/// See [`RECEIVE`].
pub const SEND: usize = 1;

/// Entries of a queue, at most: QEMU's virtio-mmio offers every guest this many, whatever its device is set to.
pub const QUEUE_SIZE: u16 = 1024;

/// Whoever frames are handed on to: a stream that does not block.
pub trait Peer: Read + Write + AsRawFd + Send {}

impl<P: Read + Write + AsRawFd + Send> Peer for P {}

/// The network front of one guest.
#[derive(Debug)]
pub struct Front<P> {
    rules: Rules,
    peer: Option<P>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The guest has to give buffers before anything more is read.
    is_starved: bool,
    over: Option<Over>,
    dropped: Dropped,
}

impl<P: Peer> Front<P> {
    /// Makes a front; without a `peer` every frame is dropped.
    #[must_use]
    pub fn new(rules: Rules, peer: Option<P>) -> Self {
        Front {
            rules,
            peer,
            incoming: Incoming::new(ETHERNET, rules.longest()),
            outgoing: Outgoing::new(rules.longest()),
            is_starved: true,
            over: None,
            dropped: Dropped::default(),
        }
    }

    /// What was dropped until now.
    #[must_use]
    pub fn dropped(&self) -> &Dropped {
        &self.dropped
    }

    /// Hands on what the guest sends, up to a queue full.
    fn send(&mut self, vring: &mut Vring) -> Result<Progress, Broken> {
        vring.want_no_kicks()?;
        let mut count = 0;
        let mut is_empty = false;
        while self.make_room() && count < vring.size() && !is_empty {
            is_empty = !vring.serve_one(|request| self.take(request))?;
            count += 1;
        }
        self.write();
        if !self.outgoing.has_room() || self.over.is_some() {
            // The guest is not asked to kick: the peer wakes us.
            return Ok(Progress::Idle);
        }
        if is_empty {
            if !vring.want_kicks()? {
                return Ok(Progress::Idle);
            }
            // It came after the look at the empty queue. A working guest never promises what is not there.
            if self.make_room() && !vring.serve_one(|request| self.take(request))? {
                return Err(Broken::Empty);
            }
        }
        Ok(Progress::More)
    }

    /// Whether the longest frame can be taken now.
    fn make_room(&mut self) -> bool {
        if !self.outgoing.has_room() {
            self.write();
        }
        self.outgoing.has_room() && self.over.is_none()
    }

    fn take(&mut self, request: Request<'_>) -> Written {
        let rules = self.rules;
        let is_alone = self.peer.is_none();
        let memory = request.memory();
        let added = self.outgoing.add(|room| {
            let chain = request.into_chain().ok_or(Reason::NoFrame)?;
            let mut header = [0; VIRTIO_HEADER];
            let length = gather(memory, chain, &mut header, room)?;
            rules.check_sent(&header, &room[..length])?;
            if is_alone {
                return Err(Reason::NoPeer);
            }
            Ok(length)
        });
        if let Err(reason) = added {
            self.dropped.count(reason);
        }
        Written::Front(0)
    }

    fn write(&mut self) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        if let Err(error) = self.outgoing.write(|bytes| peer.write(bytes)) {
            self.end(&error);
        }
    }

    /// Gives the guest what has come for it, up to a queue full.
    fn receive(&mut self, vring: &mut Vring) -> Result<Progress, Broken> {
        // Until it turns out otherwise; also when the guest has broken its queue.
        self.is_starved = true;
        vring.want_no_kicks()?;
        for _ in 0..vring.size() {
            if !self.find() {
                self.is_starved = false;
                return Ok(Progress::Idle);
            }
            let (frame, dropped) = (self.incoming.frame(), &mut self.dropped);
            let mut put = |request: Request<'_>| match scatter(request, frame) {
                Ok(written) => Written::Front(written),
                Err(reason) => {
                    dropped.count(reason);
                    Written::Front(0)
                }
            };
            // One more look after the wish for kicks: what came in between has none.
            let is_served =
                vring.serve_one(&mut put)? || (vring.want_kicks()? && vring.serve_one(&mut put)?);
            if !is_served {
                return Ok(Progress::Idle);
            }
            self.incoming.take();
        }
        self.is_starved = false;
        Ok(Progress::More)
    }

    /// Looks for a frame that is the guest's to receive, and reads once; returns whether there is one.
    fn find(&mut self) -> bool {
        let mut is_dry = false;
        while self.over.is_none() {
            match self.incoming.look() {
                Ok(stream::Front::Frame) => {
                    match self.rules.check_received(self.incoming.frame()) {
                        Ok(()) => return true,
                        Err(reason) => self.dropped.count(reason),
                    }
                    self.incoming.take();
                }
                Ok(stream::Front::Long) => self.dropped.count(Reason::Long),
                Ok(stream::Front::Part) if is_dry => return false,
                Ok(stream::Front::Part) => is_dry = self.read(),
                Err(stream::BadLength(length)) => {
                    let text = format!("the peer announced a frame of {length} bytes");
                    self.over = Some(Over::PeerWrong(text));
                }
            }
        }
        false
    }

    /// Reads from the peer; returns whether there is no more for now.
    fn read(&mut self) -> bool {
        let Some(peer) = &mut self.peer else {
            return true;
        };
        match self.incoming.read(|room| peer.read(room)) {
            Ok(is_all) => is_all,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => {
                self.end(&error);
                true
            }
        }
    }

    fn end(&mut self, error: &io::Error) {
        log::debug!("the peer: {error}");
        self.over.get_or_insert(Over::PeerGone);
    }
}

impl<P: Peer> Device for Front<P> {
    fn queues(&self) -> usize {
        2
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    // Address, link and length are fields of a configuration space that QEMU keeps itself; it asks the backend whether the
    // length may be told. Nothing that would have the guest send other things than plain frames is offered.
    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MTU
    }

    fn process(&mut self, queue: usize, vring: &mut Vring) -> Result<Progress, Broken> {
        match queue {
            _ if self.over.is_some() => Ok(Progress::Idle),
            RECEIVE => self.receive(vring),
            _ => self.send(vring),
        }
    }

    fn watch(&self) -> Option<Watch> {
        let peer = self.peer.as_ref()?;
        Some(Watch {
            fd: peer.as_raw_fd(),
            read: (!self.is_starved).then_some(Turn::Queue(RECEIVE)),
            write: (!self.outgoing.is_empty()).then_some(Turn::Queue(SEND)),
        })
    }

    fn over(&mut self) -> Option<Over> {
        self.over.take()
    }

    fn reset(&mut self) {
        self.is_starved = true;
        log::info!("frames dropped until now: {}", self.dropped);
    }
}

/// Copies what the guest may have read: the header, then the frame. Returns the length of the frame.
fn gather(
    memory: &Memory,
    chain: Chain,
    header: &mut [u8; VIRTIO_HEADER],
    frame: &mut [u8],
) -> Result<usize, Reason> {
    let mut done = 0;
    for buffer in chain.readable() {
        let mut address = buffer.addr();
        let mut left = buffer.len() as usize;
        while left > 0 {
            let place = if done < VIRTIO_HEADER {
                header.get_mut(done..)
            } else {
                frame.get_mut(done - VIRTIO_HEADER..)
            };
            let place = place.filter(|place| !place.is_empty());
            let place = place.ok_or(Reason::Long)?;
            let count = left.min(place.len());
            memory
                .read_slice(&mut place[..count], address)
                .map_err(|_| Reason::NoFrame)?;
            address = address.unchecked_add(count as u64);
            done += count;
            left -= count;
        }
    }
    done.checked_sub(VIRTIO_HEADER).ok_or(Reason::NoFrame)
}

/// Writes a header and a frame where the guest has room for both; returns how many bytes that were.
fn scatter(request: Request<'_>, frame: &[u8]) -> Result<u32, Reason> {
    let memory = request.memory();
    let chain = request.into_chain().ok_or(Reason::Room)?;
    let header = received_header();
    let needed = header.len() + frame.len();
    let room = chain
        .clone()
        .writable()
        .fold(0_u64, |sum, buffer| sum.saturating_add(buffer.len().into()));
    if room < needed as u64 {
        return Err(Reason::Room);
    }
    let mut parts = [&header[..], frame].into_iter();
    let mut part = parts.next().unwrap_or_default();
    for buffer in chain.writable() {
        let mut address = buffer.addr();
        let mut left = buffer.len() as usize;
        while left > 0 {
            if part.is_empty() {
                match parts.next() {
                    Some(next) => part = next,
                    None => break,
                }
            }
            let count = left.min(part.len());
            let (now, later) = part.split_at(count);
            memory.write_slice(now, address).map_err(|_| Reason::Room)?;
            address = address.unchecked_add(count as u64);
            part = later;
            left -= count;
        }
    }
    u32::try_from(needed).map_err(|_| Reason::Long)
}
