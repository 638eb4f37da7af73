//! What stands in a stream is never taken for the beginning of a new one.

use cloche_proto::frame::{preface, Frame, Key, ZERO_KEY};
use cloche_proto::mux::{Mux, TO_AGENT};

const SESSION: Key = *b"0123456789abcdef0123456789abcdef";
const NONCE: Key = *b"fedcba9876543210fedcba9876543210";

fn move_all(from: &mut Mux, to: &mut Mux) {
    let bytes = from.output().to_vec();
    from.sent(bytes.len());
    to.input_space()[..bytes.len()].copy_from_slice(&bytes);
    to.received(bytes.len());
    while to.next_event(&mut |_, _| 0).unwrap().is_some() {}
}

/// The key of the first attach is known to everybody, and what is told first may hold anything: a file's name, say.
#[test]
fn the_first_words_may_hold_the_first_preface() {
    let (mut host, mut agent) = (Mux::host(), Mux::agent(SESSION));
    let words = [b"\x30\0\0\0".as_slice(), &preface(&ZERO_KEY), b"12345678"].concat();
    host.connect(NONCE);
    move_all(&mut host, &mut agent);
    move_all(&mut agent, &mut host);
    assert_eq!(host.send(TO_AGENT, &words), words.len());
    move_all(&mut host, &mut agent);
    assert!(agent.is_attached());
    assert_eq!(agent.peek(TO_AGENT), words);
}

/// A host that tells something before its first WINDOW loses the agent: why the order of its frames matters.
#[test]
fn without_a_window_first_they_may_not() {
    let (mut host, mut agent) = (Mux::host(), Mux::agent(SESSION));
    host.connect(NONCE);
    move_all(&mut host, &mut agent);
    let words = Frame::Data {
        stream: TO_AGENT,
        offset: 0,
        bytes: &preface(&ZERO_KEY),
    };
    let mut bytes = Vec::new();
    words.encode(&mut bytes);
    agent.input_space()[..bytes.len()].copy_from_slice(&bytes);
    agent.received(bytes.len());
    while agent.next_event(&mut |_, _| 0).unwrap().is_some() {}
    assert!(!agent.is_attached());
}
