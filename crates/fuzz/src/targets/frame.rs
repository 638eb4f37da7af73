//! The frame decoder takes exactly what the encoder makes, and the preface search finds what a plain search finds.

use cloche_proto::frame::{preface, Frame, PrefaceSearch, PREFACE_SIZE, ZERO_KEY};

pub fn run(data: &[u8]) {
    if let Ok(Some((frame, size))) = Frame::decode(data) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert!(is_other_version(&frame) || again == data[..size]);
        // No shorter input is a frame, and none of its beginnings is malformed.
        assert_eq!(Frame::decode(&data[..size - 1]), Ok(None));
    }
    let found = PrefaceSearch::new(&ZERO_KEY).find(data);
    let wanted = preface(&ZERO_KEY);
    let plain = data
        .windows(PREFACE_SIZE)
        .position(|window| window == wanted);
    assert_eq!(found, plain);
}

/// The rest of an attach of another version is not read, so it cannot be made again.
fn is_other_version(frame: &Frame<'_>) -> bool {
    match frame {
        Frame::Attach(attach) => attach.version != 1,
        Frame::Attached(attached) => attached.version != 1,
        _ => false,
    }
}
