//! What both ends do with whole frames: the streams, the attach, and what is to be said next.

use std::collections::VecDeque;

use crate::frame::{
    preface, Attach, Attached, Frame, Key, TableEntry, DATA_OVERHEAD, VERSION, ZERO_KEY,
};
use crate::mux::{Event, Role, TO_AGENT, TO_HOST};
use crate::ring::WINDOW;
use crate::stream::{Contradiction, Receiver, Sender};
use crate::streams::Streams;

/// Frames are put together up to this many bytes: what a virtio port takes in one write. One write is one exit of the
/// virtual machine, so a rest of a few bytes would cost as much as all before it.
const OUTPUT_SIZE: usize = 32768;
/// A DATA frame is not begun for fewer bytes than this because of what stands before it.
const SMALLEST_SHARE: usize = 2048;

/// A session key of this agent's own. Clones of one saved guest have made the same key; the nonce is the host's and
/// is never used twice. Whoever does not know both, digit by digit, does not know the outcome.
fn mixed(session: &Key, nonce: &Key) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let value = |digit: u8| DIGITS.iter().position(|known| *known == digit).unwrap_or(0);
    std::array::from_fn(|at| DIGITS[(value(session[at]) ^ value(nonce[at])) % DIGITS.len()])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Looking for the preface; everything else is thrown away.
    Searching,
    /// The preface was there: ATTACH or ATTACHED is next.
    Greeting,
    /// Frames flow.
    Attached,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No frame, or not here.
    Malformed,
    /// It contradicts what is known of this stream.
    Contradiction(u32),
    /// Nobody knows this stream.
    Unknown(u32),
}

/// Everything of a [`crate::mux::Mux`] but its input, so that a frame may borrow from the input while it is handled.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) role: Role,
    pub(crate) state: State,
    /// Agent: its own session key. Host: the agent's, once known.
    pub(crate) session: Key,
    pub(crate) senders: Streams<Sender>,
    pub(crate) receivers: Streams<Receiver>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) ignored: u64,
    /// Host: no attach has succeeded yet. Agent: the last preface had the key of the first attach.
    fresh: bool,
    /// A frame came after an attach, so the peer has read our greeting.
    confirmed: bool,
    /// Agent: the session key has changed, and what is searched for with it.
    pub(crate) has_new_key: bool,
    output: Vec<u8>,
    written: usize,
    /// Something may have to be put into the output.
    dirty: bool,
    /// The sender served last, for taking turns.
    turn: u32,
}

impl Link {
    pub(crate) fn new(role: Role, session: Key) -> Self {
        let (to_peer, from_peer) = match role {
            Role::Agent => (TO_HOST, TO_AGENT),
            Role::Host => (TO_AGENT, TO_HOST),
        };
        Self {
            role,
            state: State::Searching,
            session,
            senders: Streams::of(to_peer, Sender::new(WINDOW as u64)),
            receivers: Streams::of(from_peer, Receiver::new(true)),
            events: VecDeque::new(),
            ignored: 0,
            fresh: true,
            confirmed: false,
            has_new_key: false,
            output: Vec::new(),
            written: 0,
            dirty: false,
            turn: 0,
        }
    }

    pub(crate) fn open_sender(&mut self, stream: u32) -> bool {
        let limit = match self.role {
            Role::Agent => WINDOW as u64,
            Role::Host => 0,
        };
        self.senders.add(stream, || Sender::new(limit))
    }

    pub(crate) fn open_receiver(&mut self, stream: u32) -> bool {
        let granted = self.role == Role::Host;
        let is_new = self.receivers.add(stream, || Receiver::new(granted));
        self.dirty |= is_new;
        is_new
    }

    /// A sender about to be changed.
    pub(crate) fn sender(&mut self, stream: u32) -> Option<&mut Sender> {
        self.dirty = true;
        self.senders.get_mut(stream)
    }

    /// A receiver about to be changed.
    pub(crate) fn receiver(&mut self, stream: u32) -> Option<&mut Receiver> {
        self.dirty = true;
        self.receivers.get_mut(stream)
    }

    /// Nothing flows until the next attach.
    pub(crate) fn lose(&mut self) {
        self.state = State::Searching;
        self.drop_output();
    }

    /// A preface was there; the agent is told whether it was that of the first attach.
    pub(crate) fn greeting(&mut self, zero_key: bool) {
        self.state = State::Greeting;
        if self.role == Role::Agent {
            self.fresh = zero_key;
            self.drop_output();
        }
    }

    fn drop_output(&mut self) {
        self.output.clear();
        self.written = 0;
    }

    pub(crate) const fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Host: what a new byte stream starts with.
    pub(crate) fn greet_agent(&mut self, nonce: Key) {
        self.lose();
        let key = if self.fresh { ZERO_KEY } else { self.session };
        self.output.extend_from_slice(&preface(&key));
        Frame::Attach(Attach {
            version: VERSION,
            nonce,
            table: self.table(),
        })
        .encode(&mut self.output);
    }

    fn table(&self) -> Vec<TableEntry> {
        self.receivers
            .iter()
            .map(|(stream, receiver)| receiver.entry(stream))
            .collect()
    }

    pub(crate) fn take_frame(
        &mut self,
        frame: Frame<'_>,
        direct: &mut dyn FnMut(u32, &[u8]) -> usize,
    ) -> Result<(), Refusal> {
        match (frame, self.state, self.role) {
            (Frame::Attach(attach), State::Greeting, Role::Agent) => self.attach(&attach),
            (Frame::Attached(attached), State::Greeting, Role::Host) => self.attached(&attached),
            (Frame::Attach(_) | Frame::Attached(_), _, _) => Err(Refusal::Malformed),
            (frame, State::Attached, _) => {
                self.dirty = true;
                self.confirmed = true;
                self.take_stream_frame(&frame, direct)
            }
            _ => Err(Refusal::Malformed),
        }
    }

    fn attach(&mut self, attach: &Attach) -> Result<(), Refusal> {
        let same = attach.version == VERSION;
        if same {
            self.check_table(&attach.table)?;
        }
        if self.fresh {
            self.session = mixed(&self.session, &attach.nonce);
            self.has_new_key = true;
        }
        self.output.extend_from_slice(&preface(&attach.nonce));
        Frame::Attached(Attached {
            version: VERSION,
            session: self.session,
            fresh: self.fresh,
            table: if same { self.table() } else { Vec::new() },
        })
        .encode(&mut self.output);
        if same {
            self.begin(self.fresh, &attach.table);
        } else {
            self.state = State::Searching;
            self.events.push_back(Event::OtherVersion {
                version: attach.version,
            });
        }
        Ok(())
    }

    fn attached(&mut self, attached: &Attached) -> Result<(), Refusal> {
        if attached.version != VERSION {
            self.state = State::Searching;
            self.events.push_back(Event::OtherVersion {
                version: attached.version,
            });
            return Ok(());
        }
        // The key that opened the agent said which it must be.
        if attached.fresh != self.fresh || (!self.fresh && attached.session != self.session) {
            return Err(Refusal::Malformed);
        }
        self.check_table(&attached.table)?;
        self.session = attached.session;
        self.begin(attached.fresh, &attached.table);
        Ok(())
    }

    fn check_table(&self, table: &[TableEntry]) -> Result<(), Refusal> {
        table.iter().try_for_each(|entry| {
            let known = self.senders.get(entry.stream);
            known
                .map_or(Ok(()), |sender| sender.check_entry(entry))
                .map_err(|_| Refusal::Contradiction(entry.stream))
        })
    }

    /// Frames flow from here on; `table` was checked.
    fn begin(&mut self, fresh: bool, table: &[TableEntry]) {
        self.state = State::Attached;
        self.fresh = false;
        self.dirty = true;
        self.events.push_back(Event::Attached { fresh });
        let events = &mut self.events;
        self.senders.retain(|stream, sender| {
            if let Some(entry) = table.iter().rfind(|entry| entry.stream == stream) {
                sender.reattach(entry);
                events.push_back(Event::Credit { stream });
            } else if sender.is_finished_if_unlisted() {
                events.push_back(Event::Finished { stream });
                return false;
            }
            true
        });
        self.receivers.values_mut().for_each(Receiver::reattach);
    }

    fn take_stream_frame(
        &mut self,
        frame: &Frame<'_>,
        direct: &mut dyn FnMut(u32, &[u8]) -> usize,
    ) -> Result<(), Refusal> {
        match *frame {
            Frame::Data {
                stream,
                offset,
                bytes,
            } => {
                let receiver = find(&mut self.receivers, stream)?;
                if receiver
                    .data(offset, bytes, |bytes| direct(stream, bytes))
                    .map_err(contradiction(stream))?
                {
                    self.events.push_back(Event::Data { stream });
                }
            }
            Frame::Eof {
                stream,
                offset,
                aborted,
            } => {
                let receiver = find(&mut self.receivers, stream)?;
                // The control streams have no end.
                if stream <= TO_HOST {
                    return Err(Refusal::Contradiction(stream));
                }
                if receiver
                    .eof(offset, aborted)
                    .map_err(contradiction(stream))?
                {
                    self.events.push_back(Event::Eof { stream });
                }
            }
            Frame::Window {
                stream,
                consumed,
                limit,
                fin,
            } => {
                let sender = find(&mut self.senders, stream)?;
                if sender
                    .window(consumed, limit, fin)
                    .map_err(contradiction(stream))?
                {
                    self.senders.remove(stream);
                    self.events.push_back(Event::Finished { stream });
                } else {
                    self.events.push_back(Event::Credit { stream });
                }
            }
            Frame::Stop { stream } => {
                let sender = find(&mut self.senders, stream)?;
                if stream <= TO_HOST {
                    return Err(Refusal::Contradiction(stream));
                }
                if sender.stop() {
                    self.events.push_back(Event::Stopped { stream });
                }
            }
            Frame::Attach(_) | Frame::Attached(_) => return Err(Refusal::Malformed),
        }
        Ok(())
    }

    pub(crate) fn output(&mut self) -> &[u8] {
        if self.written == self.output.len() {
            self.drop_output();
        }
        if self.dirty && self.state == State::Attached && self.share() > 0 {
            self.fill();
        }
        &self.output[self.written..]
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.written = (self.written + count).min(self.output.len());
    }

    /// How many bytes of a stream still fit into what is put together; 0 when it is as good as full.
    fn share(&self) -> usize {
        let share = OUTPUT_SIZE.saturating_sub(self.output.len() + DATA_OVERHEAD);
        if share < SMALLEST_SHARE {
            0
        } else {
            share
        }
    }

    fn fill(&mut self) {
        let output = &mut self.output;
        self.receivers
            .retain(|stream, receiver| !receiver.fill(stream, output));
        self.dirty = false;
        // The control stream goes first, then the others take turns from the one after the last served on.
        let turn = self.turn.max(TO_HOST);
        let ids = || self.senders.iter().map(|(id, _)| id);
        let control = ids().filter(|id| *id <= TO_HOST);
        let after = ids().filter(|id| *id > turn);
        let before = ids().filter(|id| *id > TO_HOST && *id <= turn);
        let order: Vec<u32> = control.chain(after).chain(before).collect();
        for stream in order {
            let share = self.share();
            if share == 0 {
                self.dirty = true;
                return;
            }
            if let Some(sender) = self.senders.get_mut(stream) {
                self.dirty |= sender.fill(stream, &mut self.output, share);
            }
            if stream > TO_HOST {
                self.turn = stream;
            }
        }
    }
}

fn find<T>(streams: &mut Streams<T>, stream: u32) -> Result<&mut T, Refusal> {
    streams.get_mut(stream).ok_or(Refusal::Unknown(stream))
}

fn contradiction(stream: u32) -> impl FnOnce(Contradiction) -> Refusal {
    move |_| Refusal::Contradiction(stream)
}
