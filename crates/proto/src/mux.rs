//! The state machine of the channel, for either role: bytes in, events out, bytes out (`protocol/README.md`,
//! sections 3 and 4). It does no input or output; whoever owns it moves the bytes.

use thiserror::Error;

use crate::frame::{Frame, Key, PrefaceSearch, PREFACE_SIZE, ZERO_KEY};
use crate::link::{Link, Refusal, State};
pub use crate::ring::WINDOW;
use crate::stream::{Receiver, Sender};

/// The stream of control messages to the agent.
pub const TO_AGENT: u32 = 0;
/// The stream of control messages to the host.
pub const TO_HOST: u32 = 1;

/// How much room an input buffer offers at least.
const READ_SIZE: usize = 65536;
/// Size of the input buffer while no larger frame is awaited.
const INPUT_SIZE: usize = 4 * READ_SIZE;

/// Which end of the channel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// In the guest: answers attaches, and waits for the next one when something is wrong.
    Agent,
    /// Outside: attaches, and treats everything wrong as hostile.
    Host,
}

/// What happened on the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Both sides know each other's receivers; bytes flow.
    Attached {
        /// First attach of this agent.
        fresh: bool,
    },
    /// The peer speaks another version (host: of the agent; agent: of the host). Nothing flows.
    OtherVersion {
        /// Its version.
        version: u16,
    },
    /// A malformed frame came, or one that contradicts the state (agent only). Nothing flows until the next attach.
    Lost,
    /// Bytes wait in a receiver: see [`Mux::peek`].
    Data {
        /// The stream.
        stream: u32,
    },
    /// A receiver's end is known; bytes before it may still wait: see [`Mux::is_at_end`].
    Eof {
        /// The stream.
        stream: u32,
    },
    /// The reader of one of our senders is gone. The EOF is answered by itself; the source is to be told.
    Stopped {
        /// The stream.
        stream: u32,
    },
    /// A sender's room may have grown.
    Credit {
        /// The stream.
        stream: u32,
    },
    /// The peer has consumed a sender's stream to its end, and both have forgotten it.
    Finished {
        /// The stream.
        stream: u32,
    },
}

/// What a host refuses from an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The bytes are no frame, or no attach is where one must be.
    #[error("the agent sent a malformed frame")]
    Malformed,
    /// A frame contradicts what is known of its stream.
    #[error("the agent sent a frame that contradicts the state of stream {0}")]
    Contradiction(u32),
    /// A frame for a stream that does not exist.
    #[error("the agent sent a frame for the unknown stream {0}")]
    UnknownStream(u32),
}

/// Bytes that arrived and were not taken yet.
#[derive(Debug)]
struct Input {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    search: Option<PrefaceSearch>,
    /// Agent: the preface of the first attach, until a frame shows that the host knows the session key.
    zero: Option<PrefaceSearch>,
    /// The preface found is that of the first attach.
    is_zero: bool,
    /// Everything before this was searched (a preface may start up to 39 bytes earlier).
    searched: usize,
    /// Where a new byte stream starts.
    cut: Option<usize>,
}

impl Input {
    fn new(search: Option<PrefaceSearch>, zero: Option<PrefaceSearch>) -> Self {
        Self {
            buf: Vec::new(),
            start: 0,
            end: 0,
            search,
            zero,
            is_zero: false,
            searched: 0,
            cut: None,
        }
    }

    /// Throws everything away.
    fn restart(&mut self) {
        self.start = 0;
        self.end = 0;
        self.search_again();
    }

    /// What is left was searched for the wrong prefaces.
    fn search_again(&mut self) {
        self.searched = self.start;
        self.cut = None;
    }

    fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.shift_to_front();
            if self.buf.len() > INPUT_SIZE {
                self.buf = Vec::new();
            }
        }
        if self.buf.len() - self.end < READ_SIZE {
            self.shift_to_front();
            let needed = (self.end + READ_SIZE).max(INPUT_SIZE);
            if self.buf.is_empty() {
                // Zero pages from the kernel, touched only as far as they are used.
                self.buf = vec![0; needed];
            } else if self.buf.len() < needed {
                self.buf.resize(needed, 0);
            }
        }
        let end = self.end;
        &mut self.buf[end..]
    }

    fn shift_to_front(&mut self) {
        self.buf.copy_within(self.start..self.end, 0);
        self.searched = self.searched.saturating_sub(self.start);
        self.cut = self.cut.map(|cut| cut.saturating_sub(self.start));
        self.end -= self.start;
        self.start = 0;
    }

    /// Searches the bytes that came since the last search.
    fn look_for_preface(&mut self) {
        if self.cut.is_some() || self.searched == self.end {
            return;
        }
        let from = self
            .start
            .max(self.searched.saturating_sub(PREFACE_SIZE - 1));
        let bytes = &self.buf[from..self.end];
        let find = |search: &Option<PrefaceSearch>| search.as_ref().and_then(|s| s.find(bytes));
        let (known, zero) = (find(&self.search), find(&self.zero));
        self.is_zero = zero.is_some_and(|zero| known.is_none_or(|known| zero < known));
        let first = if self.is_zero { zero } else { known };
        self.cut = first.map(|at| from + at);
        self.searched = self.end;
    }

    /// Goes to the bytes after the preface. Returns whether there was one.
    fn skip_to_cut(&mut self) -> bool {
        let Some(cut) = self.cut.take() else {
            return false;
        };
        self.start = cut + PREFACE_SIZE;
        self.searched = self.start;
        true
    }

    /// Throws away everything that cannot be the start of a preface.
    fn keep_tail(&mut self) {
        self.start = self.start.max(self.end.saturating_sub(PREFACE_SIZE - 1));
    }

    /// What may be taken as frames.
    fn frames(&self) -> &[u8] {
        &self.buf[self.start..self.cut.unwrap_or(self.end)]
    }
}

/// One end of the channel.
#[derive(Debug)]
pub struct Mux {
    input: Input,
    link: Link,
}

impl Mux {
    /// The agent's end. `session` is what its session key is made of, together with the nonce of the first attach:
    /// 32 lower-case hexadecimal digits nobody can guess.
    #[must_use]
    pub fn agent(session: Key) -> Self {
        Self {
            input: Input::new(
                Some(PrefaceSearch::new(&session)),
                Some(PrefaceSearch::new(&ZERO_KEY)),
            ),
            link: Link::new(Role::Agent, session),
        }
    }

    /// The host's end; [`Mux::connect`] starts it.
    #[must_use]
    pub fn host() -> Self {
        Self {
            input: Input::new(None, None),
            link: Link::new(Role::Host, ZERO_KEY),
        }
    }

    /// Host: a new byte stream is there; asks for an attach. `nonce` is 32 random lower-case hexadecimal digits.
    pub fn connect(&mut self, nonce: Key) {
        self.input.restart();
        self.input.search = Some(PrefaceSearch::new(&nonce));
        self.link.greet_agent(nonce);
    }

    /// The byte stream is gone. Agent: what comes next is a new one.
    pub fn disconnect(&mut self) {
        self.input.restart();
        self.link.lose();
    }

    /// Whether frames flow.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.link.state == State::Attached
    }

    /// How many frames for unknown streams were ignored (agent only).
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.link.ignored
    }

    /// Room for bytes from the peer, at least 64 KiB.
    pub fn input_space(&mut self) -> &mut [u8] {
        self.input.space()
    }

    /// Takes `count` bytes that were written into [`Mux::input_space`].
    pub fn received(&mut self, count: usize) {
        self.input.end = (self.input.end + count).min(self.input.buf.len());
    }

    /// Takes the next frame and says what it means; `None` when no whole frame is left.
    ///
    /// Bytes of a stream that nothing waits before are offered to `direct` first, which returns how many it took; only
    /// the rest is kept and told as [`Event::Data`].
    ///
    /// # Errors
    /// [`ProtocolError`] in the host's role only: the peer is not to be spoken to any more.
    pub fn next_event(
        &mut self,
        direct: &mut dyn FnMut(u32, &[u8]) -> usize,
    ) -> Result<Option<Event>, ProtocolError> {
        loop {
            if let Some(event) = self.link.events.pop_front() {
                return Ok(Some(event));
            }
            self.input.look_for_preface();
            if self.link.state == State::Searching {
                if !self.next_byte_stream() {
                    self.input.keep_tail();
                    return Ok(None);
                }
                continue;
            }
            let step = match Frame::decode(self.input.frames()) {
                Ok(None) => None,
                Ok(Some((frame, size))) => Some((size, self.link.take_frame(frame, direct).err())),
                Err(_) => Some((0, Some(Refusal::Malformed))),
            };
            let Some((taken, refusal)) = step else {
                if self.next_byte_stream() {
                    continue;
                }
                return Ok(None);
            };
            self.input.start += taken;
            if let Some(refusal) = refusal {
                self.refuse(&refusal)?;
            }
            self.follow_state();
        }
    }

    /// Goes on with the byte stream that starts at the preface found, if one was.
    fn next_byte_stream(&mut self) -> bool {
        let found = self.input.skip_to_cut();
        if found {
            self.link.greeting(self.input.is_zero);
        }
        found
    }

    /// The agent's key is new after a first attach. Once a frame came after the greeting, the key of the first attach opens nothing any more; a host that is
    /// attached expects no preface at all.
    fn follow_state(&mut self) {
        if std::mem::take(&mut self.link.has_new_key) {
            self.input.search = Some(PrefaceSearch::new(&self.link.session));
            self.input.search_again();
        }
        let was_searched = match self.link.role {
            Role::Agent if self.link.is_confirmed() => self.input.zero.take(),
            Role::Host if self.is_attached() => self.input.search.take(),
            _ => None,
        };
        if was_searched.is_some() {
            self.input.search_again();
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Result<(), ProtocolError> {
        match (self.link.role, refusal) {
            (Role::Agent, Refusal::Unknown(_)) => self.link.ignored += 1,
            (Role::Agent, _) => {
                self.link.lose();
                self.link.events.push_back(Event::Lost);
            }
            (Role::Host, Refusal::Malformed) => return Err(ProtocolError::Malformed),
            (Role::Host, Refusal::Contradiction(id)) => {
                return Err(ProtocolError::Contradiction(*id));
            }
            (Role::Host, Refusal::Unknown(id)) => return Err(ProtocolError::UnknownStream(*id)),
        }
        Ok(())
    }

    /// Makes a sender. Its first limit follows from the role. Returns false when the stream exists already.
    pub fn open_sender(&mut self, stream: u32) -> bool {
        self.link.open_sender(stream)
    }

    /// Makes a receiver; the agent grants its first credit by a WINDOW. Returns false when the stream exists already.
    pub fn open_receiver(&mut self, stream: u32) -> bool {
        self.link.open_receiver(stream)
    }

    /// Whether this side still knows the stream.
    #[must_use]
    pub fn knows(&self, stream: u32) -> bool {
        self.link.senders.get(stream).is_some() || self.link.receivers.get(stream).is_some()
    }

    /// Forgets a stream without a word (FAILED does this on both sides).
    pub fn forget(&mut self, stream: u32) {
        self.link.senders.remove(stream);
        self.link.receivers.remove(stream);
    }

    /// How many bytes a sender takes now; 0 for an unknown or ended stream.
    #[must_use]
    pub fn room(&self, stream: u32) -> usize {
        self.link.senders.get(stream).map_or(0, Sender::room)
    }

    /// Room in a sender's queue, contiguous, at most `want` bytes; empty without credit.
    pub fn spare(&mut self, stream: u32, want: usize) -> &mut [u8] {
        match self.link.senders.get_mut(stream) {
            Some(sender) => sender.spare(want),
            None => &mut [],
        }
    }

    /// Sends `count` bytes that were written into [`Mux::spare`].
    pub fn commit(&mut self, stream: u32, count: usize) {
        if let Some(sender) = self.link.sender(stream) {
            sender.commit(count);
        }
    }

    /// Sends as much of `bytes` as there is room for, and returns how much.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) -> usize {
        self.link
            .sender(stream)
            .map_or(0, |sender| sender.push(bytes))
    }

    /// Ends a sender's stream after what was sent; `aborted` when its source broke.
    pub fn finish(&mut self, stream: u32, aborted: bool) {
        if let Some(sender) = self.link.sender(stream) {
            sender.finish(aborted);
        }
    }

    /// The first bytes that wait in a receiver (there may be more behind them).
    #[must_use]
    pub fn peek(&self, stream: u32) -> &[u8] {
        self.link.receivers.get(stream).map_or(&[], Receiver::peek)
    }

    /// Takes `count` bytes out of a receiver.
    pub fn consume(&mut self, stream: u32, count: usize) {
        if let Some(receiver) = self.link.receiver(stream) {
            receiver.consume(count);
        }
    }

    /// Whether a receiver's end is known and every byte before it was taken; true for an unknown stream.
    #[must_use]
    pub fn is_at_end(&self, stream: u32) -> bool {
        self.link
            .receivers
            .get(stream)
            .is_none_or(Receiver::is_at_end)
    }

    /// Tells the peer that nobody reads this stream any more; what waits and what still comes is thrown away.
    pub fn stop(&mut self, stream: u32) {
        if let Some(receiver) = self.link.receiver(stream) {
            receiver.stop();
        }
    }

    /// Bytes to write to the peer; empty when there is nothing to say.
    pub fn output(&mut self) -> &[u8] {
        self.link.output()
    }

    /// Takes `count` bytes off [`Mux::output`], because they were written.
    pub fn sent(&mut self, count: usize) {
        self.link.sent(count);
    }
}
