//! Whatever the peer sends, in whatever pieces, and whatever this side does meanwhile: both roles keep their bounds.

use cloche_proto::frame::{preface, Attach, Attached, Frame, Key, TableEntry, VERSION, ZERO_KEY};
use cloche_proto::mux::{Mux, WINDOW};

use crate::choices::Choices;

const SESSION: Key = *b"0123456789abcdef0123456789abcdef";
const NONCE: Key = *b"fedcba9876543210fedcba9876543210";
const STREAMS: [u32; 6] = [0, 1, 2, 3, 4, 5];

impl Choices<'_> {
    fn stream(&mut self) -> u32 {
        self.pick(&STREAMS)
    }

    /// An offset near something that matters.
    fn offset(&mut self) -> u64 {
        let near = [0, 1, 256, 65_536, WINDOW as u64, u64::MAX - 300, 1 << 40];
        self.pick(&near).saturating_add(u64::from(self.byte()))
    }

    fn entry(&mut self) -> TableEntry {
        TableEntry {
            stream: self.stream(),
            received: self.offset(),
            consumed: self.offset(),
            limit: self.offset(),
        }
    }
}

fn peer_bytes(choices: &mut Choices<'_>, is_agent: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let kind = choices.byte();
    if kind % 8 == 0 {
        let keys = [ZERO_KEY, SESSION, NONCE];
        out.extend_from_slice(&preface(&keys[usize::from(choices.byte()) % 3]));
    }
    let table: Vec<TableEntry> = (0..choices.byte() % 4).map(|_| choices.entry()).collect();
    let payload = vec![choices.byte(); usize::from(choices.byte()) * 257 + 1];
    let frame = match kind % 8 {
        0 | 1 if is_agent => Frame::Attach(Attach {
            version: VERSION,
            nonce: NONCE,
            table,
        }),
        0 | 1 => Frame::Attached(Attached {
            version: VERSION,
            session: SESSION,
            fresh: choices.byte() % 2 == 0,
            table,
        }),
        2 | 3 => Frame::Data {
            stream: choices.stream(),
            offset: choices.offset(),
            bytes: &payload[..payload.len().min(65_536)],
        },
        4 => Frame::Window {
            stream: choices.stream(),
            consumed: choices.offset(),
            limit: choices.offset(),
            fin: choices.byte() % 2 == 0,
        },
        5 => Frame::Eof {
            stream: choices.stream(),
            offset: choices.offset(),
            aborted: choices.byte() % 2 == 0,
        },
        6 => Frame::Stop {
            stream: choices.stream(),
        },
        _ => {
            out.extend_from_slice(&payload[..payload.len().min(64)]);
            return out;
        }
    };
    frame.encode(&mut out);
    // A cut in the middle.
    if choices.byte() % 16 == 0 {
        out.truncate(usize::from(choices.byte()));
    }
    out
}

/// Gives bytes to the mux; returns false when a host has refused them.
fn feed(mux: &mut Mux, bytes: &[u8], take: u8) -> bool {
    for piece in bytes.chunks(65_536) {
        mux.input_space()[..piece.len()].copy_from_slice(piece);
        mux.received(piece.len());
        loop {
            let mut direct = |_: u32, bytes: &[u8]| bytes.len() * usize::from(take) / 255;
            match mux.next_event(&mut direct) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return false,
            }
        }
    }
    true
}

fn check_bounds(mux: &mut Mux) {
    for stream in STREAMS {
        assert!(mux.peek(stream).len() <= WINDOW);
        assert!(mux.room(stream) <= WINDOW);
    }
    assert!(mux.output().len() <= 2 * 65_536);
}

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let is_agent = choices.byte() % 2 == 0;
    let mut mux = if is_agent {
        Mux::agent(SESSION)
    } else {
        let mut mux = Mux::host();
        mux.connect(NONCE);
        mux
    };
    while !choices.is_empty() {
        let stream = choices.stream();
        match choices.byte() % 16 {
            0 => drop(mux.open_sender(stream)),
            1 => drop(mux.open_receiver(stream)),
            2 => mux.finish(stream, choices.byte() % 2 == 0),
            3 => mux.stop(stream),
            4 => mux.consume(stream, usize::from(choices.byte()) * 300),
            5 => {
                let bytes = vec![7; usize::from(choices.byte()) * 1100];
                mux.send(stream, &bytes);
            }
            6 => {
                let count = mux.output().len();
                mux.sent(count * usize::from(choices.byte()) / 255);
            }
            7 => {
                let count = mux.spare(stream, usize::from(choices.byte()) * 300).len();
                mux.commit(stream, count);
            }
            8 if choices.byte() % 8 == 0 => mux.disconnect(),
            9 if choices.byte() % 8 == 0 && !is_agent => mux.connect(NONCE),
            _ => {
                let bytes = peer_bytes(&mut choices, is_agent);
                let take = choices.byte();
                if !feed(&mut mux, &bytes, take) {
                    return;
                }
            }
        }
        check_bounds(&mut mux);
    }
}
