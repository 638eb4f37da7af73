//! The device as the start-up crate sees it: packets between two queues and the streams of the host.
//!
//! What is kept: of each stream what its guest may have sent ([`crate::connection::ROOM`]), at most [`MOST_REPLIES`] answers to
//! packets of no stream, and one packet for the guest. While the guest takes no answers, its packets are not taken either; while
//! it gives no buffers, nothing is read from the host.

mod host;

use std::collections::VecDeque;
use std::ops::Range;

use cloche_device::{Broken, Device, Progress, Request, Turn, Vring, Watch, Written};

use crate::connection::{Connection, Next, Word};
use crate::outside::Outside;
use crate::packet::{gather, op, scatter, Header, HEADER, HOST_CID, MOST_DATA, STREAM};
use crate::table::{Ports, Table};

/// The queue of what the guest receives.
pub const RECEIVE: usize = 0;
/// The queue of what it sends.
pub const SEND: usize = 1;
/// Answers to packets of no stream that are kept while the guest takes none.
pub const MOST_REPLIES: usize = 64;
/// Entries of a queue, at most: QEMU's virtio-mmio offers every guest this many, whatever its device is set to.
pub const QUEUE_SIZE: u16 = 1024;

/// What is for the guest next.
#[derive(Debug)]
struct Staged {
    header: Header,
    /// Whose it is, if it is a stream's.
    slot: Option<usize>,
    /// Which bytes of the buffer are left to be sent.
    left: Range<usize>,
}

/// The sockets of one guest.
pub struct Sockets {
    cid: u64,
    table: Table,
    outside: Outside,
    replies: VecDeque<Header>,
    /// Streams with something to say to the guest, each once; they take turns.
    row: VecDeque<usize>,
    staged: Option<Staged>,
    /// Bytes of what is staged.
    inward: Box<[u8]>,
    /// A packet of the guest's.
    outward: Box<[u8]>,
    /// Streams of the guest's for which the supervisor is to be asked, and for whom it was.
    wanted: VecDeque<Ports>,
    asked: Option<Ports>,
    /// The supervisor is there.
    is_supervised: bool,
    /// Programs of the host may be waiting to be let in.
    is_knocked: bool,
    /// The guest has to give buffers before anything more is done for it.
    is_starved: bool,
    /// The guest has to take answers before more of its packets are taken.
    is_held: bool,
}

impl Sockets {
    /// Makes the device of the guest with this address.
    #[must_use]
    pub fn new(cid: u64, outside: Outside) -> Self {
        Sockets {
            cid,
            table: Table::default(),
            outside,
            replies: VecDeque::with_capacity(MOST_REPLIES),
            row: VecDeque::new(),
            staged: None,
            inward: vec![0; MOST_DATA].into(),
            outward: vec![0; HEADER + MOST_DATA].into(),
            wanted: VecDeque::new(),
            asked: None,
            is_supervised: true,
            is_knocked: true,
            is_starved: true,
            is_held: false,
        }
    }

    // From the guest

    fn send(&mut self, vring: &mut Vring) -> Result<Progress, Broken> {
        self.is_held = false;
        vring.want_no_kicks()?;
        for _ in 0..vring.size() {
            if self.replies.len() >= MOST_REPLIES {
                // The guest is not asked to kick: it is looked at again when it has taken some.
                self.is_held = true;
                return Ok(Progress::Idle);
            }
            let is_served = vring.serve_one(|request| self.take(request))?
                || (vring.want_kicks()? && vring.serve_one(|request| self.take(request))?);
            if !is_served {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }

    fn take(&mut self, request: Request<'_>) -> Written {
        let mut packet = std::mem::take(&mut self.outward);
        let (length, is_whole) = gather(request, &mut packet);
        if let Some((header, data)) = packet
            .get(..length)
            .and_then(<[u8]>::split_first_chunk::<HEADER>)
        {
            let header = Header::parse(header);
            // One that is cut off is answered like one that makes no sense.
            let data = usize::try_from(header.length)
                .ok()
                .and_then(|length| data.get(..length))
                .filter(|_| is_whole);
            self.hear(&header, data);
        }
        self.outward = packet;
        Written::Front(0)
    }

    fn hear(&mut self, header: &Header, data: Option<&[u8]>) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            // Nobody is there who could be answered in another's name.
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let slot = self.table.find(ports).filter(|_| header.kind == STREAM);
        match (slot, data) {
            (Some(slot), Some(data)) => {
                let Some(entry) = self.table.get(slot) else {
                    return;
                };
                let mut next = entry.connection.hear(header, data);
                if header.op == op::RESPONSE && next == Next::On {
                    next = entry.connection.accepted(ports.host);
                }
                self.follow(slot, next);
            }
            (Some(slot), None) => self.follow(slot, Next::Reset),
            (None, Some(_)) if header.kind == STREAM && header.op == op::REQUEST => {
                self.begin(header, ports);
            }
            (None, _) if header.op == op::RST => {}
            (None, _) => self.reply(ports, header.kind),
        }
    }

    /// The guest asks for a stream.
    fn begin(&mut self, header: &Header, ports: Ports) {
        let connection = Connection::of_guest(header);
        if !self.is_supervised || self.table.add(connection, Some(ports)).is_none() {
            self.reply(ports, STREAM);
            return;
        }
        // What was given up meanwhile, and asked for anew, does not pile up: there are no more of these than streams.
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.retain(|one| *one != ports && self.is_asked_for(*one));
        wanted.push_back(ports);
        self.wanted = wanted;
        self.ask();
    }

    /// Tells the guest that there is no such stream.
    fn reply(&mut self, ports: Ports, kind: u16) {
        let mut header = self.header(ports, op::RST, 0);
        header.kind = kind;
        self.replies.push_back(header);
    }

    fn header(&self, ports: Ports, op: u16, flags: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            flags,
            ..Header::default()
        }
    }

    /// Does what is to become of a stream.
    fn follow(&mut self, slot: usize, next: Next) {
        match next {
            Next::On => {}
            Next::Offer(port) => {
                self.table.name(slot, port);
            }
            Next::Gone => self.remove(slot),
            Next::Reset => {
                if let Some(ports) = self.table.forget(slot) {
                    self.reply(ports, STREAM);
                }
                self.remove(slot);
            }
            Next::Left { is_answered } => {
                self.unstage(slot);
                let ports = self.table.forget(slot);
                if let Some(ports) = ports.filter(|_| is_answered) {
                    self.reply(ports, STREAM);
                }
                let entry = self.table.get(slot);
                if !entry.is_some_and(|entry| entry.connection.leave()) {
                    self.remove(slot);
                }
            }
        }
        self.stand(slot);
    }

    fn remove(&mut self, slot: usize) {
        self.unstage(slot);
        self.row.retain(|other| *other != slot);
        self.table.remove(slot);
    }

    /// What a stream was about to say is not said any more.
    fn unstage(&mut self, slot: usize) {
        if matches!(&self.staged, Some(staged) if staged.slot == Some(slot)) {
            self.staged = None;
        }
    }

    /// Puts a stream that has something to say into the row.
    fn stand(&mut self, slot: usize) {
        let Some(entry) = self.table.get(slot) else {
            return;
        };
        if !entry.is_in_row && entry.connection.has_words() {
            entry.is_in_row = true;
            self.row.push_back(slot);
        }
    }

    // To the guest

    fn receive(&mut self, vring: &mut Vring) -> Result<Progress, Broken> {
        // Until it turns out otherwise; also when the guest has broken its queue.
        self.is_starved = true;
        vring.want_no_kicks()?;
        self.look();
        for _ in 0..vring.size() {
            if !self.stage() {
                self.is_starved = false;
                return Ok(Progress::Idle);
            }
            // One more look after the wish for kicks: what came in between has none.
            let is_served = vring.serve_one(|request| self.put(request))?
                || (vring.want_kicks()? && vring.serve_one(|request| self.put(request))?);
            if !is_served {
                return Ok(Progress::Idle);
            }
        }
        self.is_starved = false;
        Ok(Progress::More)
    }

    /// Finds what the guest is told next; returns whether there is something.
    fn stage(&mut self) -> bool {
        if self.staged.is_some() {
            return true;
        }
        if let Some(header) = self.replies.pop_front() {
            self.staged = Some(Staged {
                header,
                slot: None,
                left: 0..0,
            });
            return true;
        }
        while let Some(slot) = self.row.pop_front() {
            let Some(entry) = self.table.get(slot) else {
                continue;
            };
            entry.is_in_row = false;
            let word = entry.connection.speak(&mut self.inward);
            let ports = entry.ports;
            let (op, flags, length) = match word {
                Word::Silence => continue,
                Word::Control(op, flags) => (op, flags, 0),
                Word::Data(length) => (op::RW, 0, length),
                Word::Broken => {
                    self.follow(slot, Next::Reset);
                    return self.stage();
                }
            };
            // It stands again behind the others.
            self.stand(slot);
            let Some(ports) = ports else {
                continue;
            };
            self.staged = Some(Staged {
                header: self.header(ports, op, flags),
                slot: Some(slot),
                left: 0..length,
            });
            return true;
        }
        false
    }

    /// Writes as much of what is staged as a buffer of the guest's holds.
    fn put(&mut self, request: Request<'_>) -> Written {
        let Some(staged) = &mut self.staged else {
            return Written::Front(0);
        };
        if let Some(entry) = staged.slot.and_then(|slot| self.table.get(slot)) {
            (staged.header.room, staged.header.taken) = entry.connection.credit();
        }
        let data = self.inward.get(staged.left.clone()).unwrap_or_default();
        let Some(count) = scatter(request, staged.header, data) else {
            return Written::Front(0);
        };
        staged.left.start += count;
        if staged.left.is_empty() {
            self.staged = None;
        }
        Written::Front(u32::try_from(HEADER + count).unwrap_or_default())
    }
}

impl Device for Sockets {
    fn queues(&self) -> usize {
        // The third one, of events, stays in the VMM.
        2
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config(&self) -> Option<Vec<u8>> {
        Some(self.cid.to_le_bytes().to_vec())
    }

    fn process(&mut self, queue: usize, vring: &mut Vring) -> Result<Progress, Broken> {
        match queue {
            RECEIVE => self.receive(vring),
            _ => self.send(vring),
        }
    }

    fn is_due(&self, queue: usize) -> bool {
        match queue {
            RECEIVE => {
                let is_waited_for = self.staged.is_some()
                    || !self.replies.is_empty()
                    || !self.row.is_empty()
                    || (self.is_knocked && !self.table.is_full());
                is_waited_for && !self.is_starved
            }
            _ => self.is_held && self.replies.len() < MOST_REPLIES,
        }
    }

    fn watch(&self) -> Option<Watch> {
        Some(Watch {
            fd: self.outside.fd(),
            read: (!self.is_starved).then_some(Turn::Queue(RECEIVE)),
            write: None,
        })
    }

    fn reset(&mut self) {
        self.table.reset();
        self.replies.clear();
        self.row.clear();
        self.staged = None;
        self.wanted.clear();
        self.is_starved = true;
        self.is_held = false;
    }
}
