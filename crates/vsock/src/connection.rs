//! One stream between a program of the host and one of the guest.
//!
//! ```text
//! a program of the host connects                  a program of the guest connects
//!   Greeting --`CONNECT port`--> Offered             Asked --the supervisor has somebody--> Open
//!   Offered  --the guest accepts--> Open
//!   Open     --the guest has ended it, and the host has not read all--> Draining
//! ```
//!
//! Each side says how much it keeps of what the other sends. The guest's word is a limit on what is read from the host; ours
//! is a promise, and a guest that sends more has broken its stream.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use crate::greeting::{self, Greeting};
use crate::outside::Stream;
use crate::packet::{op, Header, NO_MORE_RECEIVED, NO_MORE_SENT};

/// Bytes of a guest's that are kept while a program of the host does not read them.
pub const ROOM: u32 = 128 << 10;
/// The guest is told of so much new room by a packet of its own; of less by those that are sent anyway.
const WORTH_TELLING: u32 = ROOM / 4;

/// Where a stream is between its beginning and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A program of the host has connected, and has not said to which port.
    Greeting,
    /// The guest has been asked whether somebody listens there.
    Offered,
    /// The supervisor has been asked the same.
    Asked,
    /// Bytes go both ways.
    Open,
    /// The guest knows nothing of it any more; what it has sent is still handed on.
    Draining,
}

/// What becomes of a stream after what has happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    On,
    /// A program of the host has said to which port of the guest it wants.
    Offer(u32),
    /// It is over for both sides, and the guest is told.
    Reset,
    /// The guest has ended it, and is answered if it wants to be; the host gets the rest.
    Left {
        /// Whether the guest waits for an answer.
        is_answered: bool,
    },
    /// Nothing is left of it.
    Gone,
}

/// What a stream says to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Nothing now.
    Silence,
    /// A packet without bytes: what, and with which flags.
    Control(u16, u32),
    /// So many bytes.
    Data(usize),
    /// It is broken.
    Broken,
}

/// One stream.
#[derive(Debug)]
pub struct Connection {
    state: State,
    stream: Option<Stream>,
    /// What a program of the host has said first; then what came behind its first line.
    line: Vec<u8>,
    /// What the guest has sent and the host has not taken; at most [`ROOM`] bytes.
    kept: Vec<u8>,
    /// How much of it the host has taken.
    done: usize,
    /// Bytes handed on to the host, and what the guest has been told of that; modulo 2^32, as the next three.
    taken: u32,
    told: u32,
    /// What the guest has said: how much it keeps, and how much its program has taken.
    guest_room: u32,
    guest_taken: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// There may be something to read from the host.
    is_readable: bool,
    /// The host sends no more.
    is_host_done: bool,
    /// Its program has gone, and receives no more either.
    is_host_over: bool,
    /// The guest sends no more.
    is_guest_done: bool,
    /// The guest receives no more.
    is_guest_deaf: bool,
    /// The guest is to be told: that it is asked, that it is accepted, how much is taken; and which ends it was told of.
    offer: bool,
    accept: bool,
    update: bool,
    end_told: u32,
    /// The guest was asked for room and has not answered.
    is_room_asked: bool,
}

impl Connection {
    fn new(state: State, stream: Option<Stream>) -> Self {
        Connection {
            state,
            stream,
            line: Vec::new(),
            kept: Vec::new(),
            done: 0,
            taken: 0,
            told: 0,
            guest_room: 0,
            guest_taken: 0,
            sent: 0,
            is_readable: false,
            is_host_done: false,
            is_host_over: false,
            is_guest_done: false,
            is_guest_deaf: false,
            offer: false,
            accept: false,
            update: false,
            end_told: 0,
            is_room_asked: false,
        }
    }

    /// A stream that a program of the host has just begun.
    #[must_use]
    pub fn of_host(stream: Stream) -> Self {
        Connection::new(State::Greeting, Some(stream))
    }

    /// A stream that a program of the guest asks for with this packet.
    #[must_use]
    pub fn of_guest(request: &Header) -> Self {
        let mut connection = Connection::new(State::Asked, None);
        connection.note_credit(request);
        connection
    }

    /// The host's side of it, once there is one.
    #[must_use]
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// What the guest is told with every packet: how much of it is kept, and how much has been taken.
    pub fn credit(&mut self) -> (u32, u32) {
        self.told = self.taken;
        self.update = false;
        (ROOM, self.taken)
    }

    fn note_credit(&mut self, header: &Header) {
        (self.guest_room, self.guest_taken) = (header.room, header.taken);
        self.is_room_asked = false;
    }

    /// How many bytes the guest has room for; 0 where what it says makes no sense.
    fn free(&self) -> usize {
        let underway = self.sent.wrapping_sub(self.guest_taken);
        self.guest_room.saturating_sub(underway) as usize
    }

    fn waiting(&self) -> usize {
        self.kept.len() - self.done
    }

    // What the host does

    /// The supervisor has found somebody for the guest.
    pub fn connected(&mut self, stream: Stream) {
        self.stream = Some(stream);
        self.state = State::Open;
        self.accept = true;
        self.is_readable = true;
    }

    /// Something has changed about the stream: there is more to read, or room to write, or its program `is_over`.
    pub fn stirred(&mut self, is_over: bool) -> Next {
        self.is_host_over |= is_over;
        self.is_readable = true;
        match self.state {
            State::Greeting => self.read_line(),
            State::Open | State::Draining => self.flush(),
            State::Offered | State::Asked => Next::On,
        }
    }

    fn read_line(&mut self) -> Next {
        let Some(stream) = &mut self.stream else {
            return Next::Gone;
        };
        match greeting::read(&mut self.line, stream) {
            Greeting::Begun => Next::On,
            Greeting::Over => Next::Gone,
            Greeting::Port(port) => {
                self.state = State::Offered;
                self.offer = true;
                Next::Offer(port)
            }
        }
    }

    /// Hands on what is kept.
    fn flush(&mut self) -> Next {
        let pending = self.kept.get(self.done..).unwrap_or_default();
        match write(&mut self.stream, pending) {
            Ok(count) => {
                self.done += count;
                self.note_taken(count);
            }
            // Nobody will read it.
            Err(_) if self.state == State::Draining => return Next::Gone,
            Err(_) => return Next::Reset,
        }
        if self.waiting() > 0 {
            return Next::On;
        }
        // A stream that is waited for is rare: none keeps its room for the next time.
        self.kept = Vec::new();
        self.done = 0;
        if self.state == State::Draining {
            return Next::Gone;
        }
        if self.is_guest_done {
            self.end(Shutdown::Write);
        }
        Next::On
    }

    fn note_taken(&mut self, count: usize) {
        // At most a buffer full at a time.
        self.taken = self
            .taken
            .wrapping_add(u32::try_from(count).unwrap_or_default());
        if self.taken.wrapping_sub(self.told) >= WORTH_TELLING {
            self.update = true;
        }
    }

    fn end(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            stream.shutdown(how);
        }
    }

    // What the guest says

    /// Takes in a packet of the guest's, with the bytes it has.
    pub fn hear(&mut self, header: &Header, data: &[u8]) -> Next {
        self.note_credit(header);
        match (header.op, self.state) {
            (op::RST, _) => Next::Left { is_answered: false },
            (op::RESPONSE, State::Offered) => Next::On,
            (op::RW, State::Open) => self.take(data),
            (op::SHUTDOWN, State::Open) => self.shut(header.flags),
            (op::CREDIT_UPDATE, State::Open) => Next::On,
            (op::CREDIT_REQUEST, State::Open) => {
                self.update = true;
                Next::On
            }
            _ => Next::Reset,
        }
    }

    /// The guest has accepted: the program of the host is told by which port of the host it is known there.
    pub fn accepted(&mut self, host_port: u32) -> Next {
        let line = format!("OK {host_port}\n");
        match write(&mut self.stream, line.as_bytes()) {
            Ok(count) if count == line.len() => {
                self.state = State::Open;
                self.is_readable = true;
                Next::On
            }
            _ => Next::Reset,
        }
    }

    fn take(&mut self, data: &[u8]) -> Next {
        if self.is_guest_done || self.waiting() + data.len() > ROOM as usize {
            return Next::Reset;
        }
        let mut rest = data;
        if self.waiting() == 0 {
            let Ok(count) = write(&mut self.stream, data) else {
                return Next::Reset;
            };
            self.note_taken(count);
            rest = data.get(count..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.kept.drain(..self.done);
            self.done = 0;
            self.kept.reserve_exact(ROOM as usize - self.kept.len());
            self.kept.extend_from_slice(rest);
        }
        Next::On
    }

    fn shut(&mut self, flags: u32) -> Next {
        self.is_guest_done |= flags & NO_MORE_SENT != 0;
        if flags & NO_MORE_RECEIVED != 0 && !self.is_guest_deaf {
            self.is_guest_deaf = true;
            self.end(Shutdown::Read);
        }
        if self.is_guest_done && self.is_guest_deaf {
            return Next::Left { is_answered: true };
        }
        if self.is_guest_done && self.waiting() == 0 {
            self.end(Shutdown::Write);
        }
        Next::On
    }

    /// The guest has forgotten it; returns whether the host still has something to get.
    pub fn leave(&mut self) -> bool {
        self.state = State::Draining;
        self.waiting() > 0
    }

    // What the guest is told

    /// Whether there is something to say to the guest, as far as one can see without looking.
    #[must_use]
    pub fn has_words(&self) -> bool {
        match self.state {
            State::Greeting | State::Asked | State::Draining => false,
            State::Offered => self.offer,
            State::Open => {
                self.accept
                    || self.update
                    || self.may_read()
                    || self.end_to_tell() != 0
                    || self.wants_room()
            }
        }
    }

    fn may_read(&self) -> bool {
        self.is_readable && !self.is_host_done && !self.is_guest_deaf && self.free() > 0
    }

    /// Which ends the guest has not been told of. Who has gone reads nothing more either; who has only said all may.
    fn end_to_tell(&self) -> u32 {
        let flags = match (self.is_host_done, self.is_host_over) {
            (false, _) => 0,
            (true, false) => NO_MORE_SENT,
            (true, true) => NO_MORE_SENT | NO_MORE_RECEIVED,
        };
        if flags == self.end_told {
            0
        } else {
            flags
        }
    }

    fn wants_room(&self) -> bool {
        self.is_readable
            && !self.is_host_done
            && !self.is_guest_deaf
            && self.free() == 0
            && !self.is_room_asked
    }

    /// Says the next thing; bytes are put into `room`.
    pub fn speak(&mut self, room: &mut [u8]) -> Word {
        if self.state == State::Offered && std::mem::take(&mut self.offer) {
            return Word::Control(op::REQUEST, 0);
        }
        if self.state != State::Open {
            return Word::Silence;
        }
        if std::mem::take(&mut self.accept) {
            return Word::Control(op::RESPONSE, 0);
        }
        if self.update {
            return Word::Control(op::CREDIT_UPDATE, 0);
        }
        if self.may_read() {
            match self.read(room) {
                Ok(0) => {}
                Ok(count) => return Word::Data(count),
                Err(_) => return Word::Broken,
            }
        }
        let flags = self.end_to_tell();
        if flags != 0 {
            self.end_told = flags;
            return Word::Control(op::SHUTDOWN, flags);
        }
        if self.wants_room() {
            self.is_room_asked = true;
            return Word::Control(op::CREDIT_REQUEST, 0);
        }
        Word::Silence
    }

    /// Reads what the guest has room for; 0 when there is nothing now, or no more.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let most = room.len().min(self.free());
        let room = room.get_mut(..most).unwrap_or_default();
        let mut count = self.line.len().min(most);
        if count > 0 {
            for (place, byte) in room.iter_mut().zip(self.line.drain(..count)) {
                *place = byte;
            }
        } else {
            let Some(stream) = &mut self.stream else {
                return Ok(0);
            };
            count = match stream.read(room) {
                Ok(0) => {
                    self.is_host_done = true;
                    0
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    0
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        }
        self.sent = self
            .sent
            .wrapping_add(u32::try_from(count).unwrap_or_default());
        Ok(count)
    }
}

/// Writes as much as the host takes now.
fn write(stream: &mut Option<Stream>, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while let (Some(stream), Some(rest @ [_, ..])) = (stream.as_mut(), bytes.get(done..)) {
        match stream.write(rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
