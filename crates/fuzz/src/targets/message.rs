//! Control messages: what decodes encodes to the same bytes, and the assembler gives the same messages for any cut.

use cloche_proto::message::{Assembler, ToAgent, ToHost, MAX_TO_AGENT};

pub fn run(data: &[u8]) {
    if let Ok(message) = ToAgent::decode(data) {
        let again = message.encode().expect("what was decoded can be encoded");
        assert_eq!(&again[4..], data);
    }
    if let Ok(message) = ToHost::decode(data) {
        let again = message.encode().expect("what was decoded can be encoded");
        assert_eq!(&again[4..], data);
    }
    let whole = assemble(data, data.len().max(1));
    assert_eq!(whole, assemble(data, 1));
    assert_eq!(whole, assemble(data, 7));
}

fn assemble(data: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut assembler = Assembler::new(MAX_TO_AGENT);
    let mut out = Vec::new();
    for mut piece in data.chunks(size) {
        while !piece.is_empty() {
            let Ok(count) = assembler.push(piece) else {
                return out;
            };
            piece = &piece[count..];
            out.extend(assembler.take());
        }
    }
    out
}
