//! The agent's byte stream, from the channel's bytes to its messages.
//!
//! In the first half the input is what a host has to say, told by an honest one over a byte stream that is cut anywhere: the
//! agent understands the same messages, in the same order, up to the first that no host may send. In the second it is what
//! comes out of the channel: nothing panics, and what is understood encodes to the bytes it was understood from.

use cloche_proto::frame::{preface, Key, PREFACE_SIZE};
use cloche_proto::message::{Assembler, ToAgent, MAX_TO_AGENT};
use cloche_proto::mux::{Mux, TO_AGENT};

use crate::choices::Choices;

const SESSION: Key = *b"0123456789abcdef0123456789abcdef";
const ATTACHES: u8 = 8;

/// What the host has made up for an attach, in hex digits as every key; never the same twice, or the answer to an earlier
/// one would be believed.
fn nonce(attach: u8) -> Key {
    [b'0' + attach; 32]
}

/// The agent's half, as `crates/agent` puts it together.
struct Reader {
    mux: Mux,
    control: Assembler,
    is_broken: bool,
    messages: Vec<Vec<u8>>,
}

impl Reader {
    fn new() -> Self {
        let mux = Mux::agent(SESSION);
        Reader {
            mux,
            control: Assembler::new(MAX_TO_AGENT),
            is_broken: false,
            messages: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(65_536) {
            self.mux.input_space()[..piece.len()].copy_from_slice(piece);
            self.mux.received(piece.len());
            while let Ok(Some(_)) = self.mux.next_event(&mut |_, _| 0) {}
            self.read_control();
        }
    }

    fn read_control(&mut self) {
        loop {
            let bytes = self.mux.peek(TO_AGENT);
            if bytes.is_empty() {
                return;
            }
            let taken = if self.is_broken {
                Ok(bytes.len())
            } else {
                self.control.push(bytes)
            };
            match taken {
                Ok(count) => self.mux.consume(TO_AGENT, count),
                Err(_) => self.is_broken = true,
            }
            self.messages.extend(self.control.take());
        }
    }

    fn check(&self) {
        for message in &self.messages {
            if let Ok(understood) = ToAgent::decode(message) {
                let again = understood
                    .encode()
                    .expect("what was decoded can be encoded");
                assert_eq!(&again[4..], message);
            }
        }
    }
}

/// Every key that the agent may have once the nonces of some attaches were mixed into its own.
fn keys() -> impl Iterator<Item = Key> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let value = |digit: u8| DIGITS.iter().position(|known| *known == digit).unwrap_or(0);
    (0..DIGITS.len()).map(move |mix| SESSION.map(|digit| DIGITS[value(digit) ^ mix]))
}

/// The messages in `bytes`, each with its length before it, up to the first that is wrong.
fn plainly(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut out = Vec::new();
    while let Some((length, body)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > MAX_TO_AGENT || length > body.len() {
            break;
        }
        out.push(body[..length].to_vec());
        rest = &body[length..];
    }
    out
}

pub fn run(data: &[u8]) {
    let mut hostile = Reader::new();
    hostile.take(data);
    hostile.check();

    let Some((cuts, said)) = data.split_at_checked(data.len().min(16)) else {
        return;
    };
    // The one thing that a host may not say, because nobody who could put it into a stream can know this key.
    if keys().any(|key| said.windows(PREFACE_SIZE).any(|part| part == preface(&key))) {
        return;
    }
    let mut cuts = Choices::new(cuts);
    let mut reader = Reader::new();
    let mut host = Mux::host();
    host.connect(nonce(0));
    let mut attaches = 1;
    let mut told = 0;
    // Each turn moves something but the few that cut.
    loop {
        told += host.send(TO_AGENT, &said[told..]);
        let output = host.output().to_vec();
        let is_cut = attaches < ATTACHES && cuts.once_in(4);
        let size = match cuts.byte() {
            0 => output.len(),
            byte => output.len().min(usize::from(byte) * 16),
        };
        reader.take(&output[..size]);
        host.sent(size);
        if is_cut {
            reader.mux.disconnect();
            host.connect(nonce(attaches));
            attaches += 1;
        }
        let answer = reader.mux.output().to_vec();
        reader.mux.sent(answer.len());
        for piece in answer.chunks(65_536) {
            host.input_space()[..piece.len()].copy_from_slice(piece);
            host.received(piece.len());
            while host
                .next_event(&mut |_, _| 0)
                .expect("the agent is honest")
                .is_some()
            {}
        }
        if told == said.len() && host.output().is_empty() && reader.mux.output().is_empty() {
            break;
        }
    }
    reader.check();
    assert_eq!(reader.messages, plainly(said));
}
