//! Control messages out of the pieces of a stream.

use crate::codec::{CodecError, Result};

/// Puts the messages of one control stream together from pieces. Holds at most one message.
#[derive(Debug)]
pub struct Assembler {
    max: usize,
    header: [u8; 4],
    have: usize,
    expected: usize,
    message: Vec<u8>,
}

impl Assembler {
    /// An assembler for messages of at most `max` bytes ([`crate::message::MAX_TO_AGENT`] or [`crate::message::MAX_TO_HOST`]).
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            max,
            header: [0; 4],
            have: 0,
            expected: 0,
            message: Vec::new(),
        }
    }

    /// Takes bytes up to the end of the current message, and returns how many; when that is not all, or whenever it
    /// likes, the caller asks [`Assembler::take`] for the finished message.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] or [`CodecError::Short`] when the length is not allowed; the stream cannot be read on.
    pub fn push(&mut self, bytes: &[u8]) -> Result<usize> {
        let from_header = bytes.len().min(4 - self.have);
        self.header[self.have..self.have + from_header].copy_from_slice(&bytes[..from_header]);
        self.have += from_header;
        if self.have < 4 {
            return Ok(from_header);
        }
        if from_header > 0 {
            self.expected = u32::from_le_bytes(self.header) as usize;
        }
        if self.expected > self.max {
            return Err(CodecError::TooLong { limit: self.max });
        }
        if self.expected == 0 {
            return Err(CodecError::Short);
        }
        let rest = &bytes[from_header..];
        let count = rest.len().min(self.expected - self.message.len());
        self.message.extend_from_slice(&rest[..count]);
        Ok(from_header + count)
    }

    /// The finished message (type and body), when there is one.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        // A length of zero was refused by `push`: there is no message of nothing.
        if self.have < 4 || self.expected == 0 || self.message.len() < self.expected {
            return None;
        }
        self.have = 0;
        self.expected = 0;
        Some(core::mem::take(&mut self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ToHost, MAX_TO_HOST};

    /// Messages cut at every byte come out whole and in order.
    #[test]
    fn assembler_takes_any_cut() {
        let messages = [
            ToHost::Synced { seq: 1 },
            ToHost::Log {
                level: 3,
                text: b"x".to_vec(),
            },
            ToHost::SetupDone { seq: 2 },
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|m| m.encode().unwrap()).collect();
        for cut in 0..=bytes.len() {
            let mut assembler = Assembler::new(MAX_TO_HOST);
            let mut out = Vec::new();
            for mut piece in [&bytes[..cut], &bytes[cut..]] {
                while !piece.is_empty() {
                    let taken = assembler.push(piece).unwrap();
                    piece = &piece[taken..];
                    while let Some(message) = assembler.take() {
                        out.push(ToHost::decode(&message).unwrap());
                    }
                }
            }
            assert_eq!(out, messages);
        }
    }

    /// A length of zero or past the limit is refused before anything is kept.
    #[test]
    fn assembler_refuses_bad_lengths() {
        let mut assembler = Assembler::new(16);
        assert_eq!(
            assembler.push(&[17, 0, 0, 0]),
            Err(CodecError::TooLong { limit: 16 })
        );
        let mut assembler = Assembler::new(16);
        assert_eq!(assembler.push(&[0, 0, 0, 0]), Err(CodecError::Short));
        assert_eq!(assembler.take(), None);
    }
}
