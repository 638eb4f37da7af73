//! What the channel's ends do with frames that are not the expected ones.

use cloche_proto::frame::{preface, Attach, Frame, Key, VERSION, ZERO_KEY};
use cloche_proto::mux::{Event, Mux, ProtocolError, WINDOW};

const SESSION: Key = *b"0123456789abcdef0123456789abcdef";
/// The session key after a first attach with the nonce of [`attach`]: each digit of the two is added without carry.
const MIXED: Key = *b"ab89efcd23016745ab89efcd23016745";
const UP: u32 = 3;
const DOWN: u32 = 2;

/// Puts bytes into a mux and returns its events, taking nothing of any stream.
fn feed(mux: &mut Mux, bytes: &[u8]) -> Result<Vec<Event>, ProtocolError> {
    let mut events = Vec::new();
    for piece in bytes.chunks(65536) {
        mux.input_space()[..piece.len()].copy_from_slice(piece);
        mux.received(piece.len());
        while let Some(event) = mux.next_event(&mut |_, _| 0)? {
            events.push(event);
        }
    }
    Ok(events)
}

fn encode(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out
}

fn attach(key: &Key, version: u16) -> Vec<u8> {
    let mut out = preface(key).to_vec();
    out.extend(encode(&[Frame::Attach(Attach {
        version,
        nonce: [b'a'; 32],
        table: vec![],
    })]));
    out
}

fn attached_agent() -> Mux {
    let mut agent = Mux::agent(SESSION);
    let events = feed(&mut agent, &attach(&ZERO_KEY, VERSION)).unwrap();
    assert_eq!(events, [Event::Attached { fresh: true }]);
    let count = agent.output().len();
    agent.sent(count);
    agent
}

/// Until a frame shows that the host has read the first ATTACHED, the agent answers the zeros and its session key;
/// from then on its session key only.
#[test]
fn zero_key_opens_until_confirmed() {
    let mut agent = attached_agent();
    // The key from before the first attach, which all clones of a saved guest know, opens nothing.
    assert_eq!(
        feed(&mut agent, &attach(&SESSION, VERSION)),
        Ok(vec![Event::Lost])
    );
    assert_eq!(
        feed(&mut agent, &attach(&MIXED, VERSION)),
        Ok(vec![Event::Attached { fresh: false }])
    );
    assert_eq!(
        feed(&mut agent, &attach(&ZERO_KEY, VERSION)),
        Ok(vec![Event::Attached { fresh: true }])
    );
    let mut frame = encode(&[Frame::Stop { stream: 9 }]);
    frame.extend(attach(&ZERO_KEY, VERSION));
    assert_eq!(feed(&mut agent, &frame), Ok(vec![Event::Lost]));
    assert_eq!(feed(&mut agent, &attach(&ZERO_KEY, VERSION)), Ok(vec![]));
    assert!(!agent.is_attached());
    assert_eq!(
        feed(&mut agent, &attach(&SESSION, VERSION)),
        Ok(vec![Event::Attached { fresh: false }])
    );
}

/// A host of another version gets an ATTACHED with the agent's version and an empty table, and can try again.
#[test]
fn other_version_is_answered() {
    let mut agent = Mux::agent(SESSION);
    let events = feed(&mut agent, &attach(&ZERO_KEY, 9)).unwrap();
    assert_eq!(events, [Event::OtherVersion { version: 9 }]);
    let output = agent.output()[40..].to_vec();
    match Frame::decode(&output) {
        Ok(Some((Frame::Attached(attached), size))) => {
            assert_eq!((attached.version, attached.table.len()), (VERSION, 0));
            assert_eq!(size, output.len());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        feed(&mut agent, &attach(&ZERO_KEY, VERSION)),
        Ok(vec![Event::Attached { fresh: true }])
    );
}

/// The agent ignores and counts frames for streams it does not know.
#[test]
fn agent_ignores_unknown_streams() {
    let mut agent = attached_agent();
    let frames = encode(&[
        Frame::Stop { stream: 9 },
        Frame::Eof {
            stream: 8,
            offset: 5,
            aborted: false,
        },
    ]);
    assert_eq!(feed(&mut agent, &frames), Ok(vec![]));
    assert_eq!(agent.ignored(), 2);
    assert!(agent.is_attached());
}

/// Each frame that contradicts its stream's state makes the agent wait for the next attach.
#[test]
fn contradictions_lose_the_stream() {
    let big = vec![0; 65536];
    let data = |offset, bytes| Frame::Data {
        stream: DOWN,
        offset,
        bytes,
    };
    let window = |consumed, limit, fin| Frame::Window {
        stream: UP,
        consumed,
        limit,
        fin,
    };
    let window_size = WINDOW as u64;
    let cases: Vec<Vec<Frame<'_>>> = vec![
        vec![data(1, b"x")],
        vec![data(0, b"x"), data(0, b"x")],
        (0..5).map(|k| data(k * 65536, &big[..])).collect(),
        vec![window(11, window_size, false)],
        vec![window(0, window_size - 1, false)],
        vec![window(0, window_size + 1, false)],
        vec![window(10, window_size, true)],
        vec![window(5, window_size, false), window(4, window_size, false)],
        vec![Frame::Eof {
            stream: DOWN,
            offset: 1,
            aborted: false,
        }],
        vec![
            Frame::Eof {
                stream: DOWN,
                offset: 0,
                aborted: false,
            },
            data(0, b"x"),
        ],
        vec![Frame::Eof {
            stream: 0,
            offset: 0,
            aborted: false,
        }],
        vec![Frame::Stop { stream: 1 }],
    ];
    for frames in cases {
        let mut agent = attached_agent();
        agent.open_receiver(DOWN);
        agent.open_sender(UP);
        agent.send(UP, &[0; 10]);
        let count = agent.output().len();
        agent.sent(count);
        let events = feed(&mut agent, &encode(&frames)).unwrap();
        assert_eq!(events.last(), Some(&Event::Lost), "{frames:?}");
        assert!(!agent.is_attached() && agent.output().is_empty());
    }
}

/// A host refuses what an agent must not send.
#[test]
fn host_refuses_a_hostile_agent() {
    let mut host = Mux::host();
    host.connect([b'b'; 32]);
    assert_eq!(feed(&mut host, b"boot messages \n\xC1CLO"), Ok(vec![]));
    let mut answer = preface(&[b'b'; 32]).to_vec();
    answer.extend(encode(&[Frame::Stop { stream: 0 }]));
    assert_eq!(feed(&mut host, &answer), Err(ProtocolError::Malformed));
}
