//! Frames and the preface that starts a byte stream (`protocol/README.md`, sections 2 and 4).

use crate::codec::{CodecError, Reader, Writer};
use thiserror::Error;

/// Version of the channel protocol.
pub const VERSION: u16 = 1;
/// Most bytes of a stream in one DATA frame.
pub const MAX_DATA: usize = 65536;
/// Largest payload of a frame that is not an ATTACH or ATTACHED.
pub const MAX_PAYLOAD: usize = MAX_DATA + 8;
/// Largest payload of ATTACH and ATTACHED.
pub const MAX_ATTACH_PAYLOAD: usize = 1 << 20;
/// Bytes of a DATA frame beside those of the stream.
pub const DATA_OVERHEAD: usize = HEADER_SIZE + 8 + 1;
/// Bytes before a frame's payload.
pub const HEADER_SIZE: usize = 12;
/// The byte after every frame's payload.
pub const TRAILER: u8 = 0x0A;
/// Bytes of a key or nonce: lower-case hexadecimal digits.
pub const KEY_SIZE: usize = 32;
/// Bytes of a preface.
pub const PREFACE_SIZE: usize = 8 + KEY_SIZE;

const MAGIC: [u8; 8] = [0xC1, b'C', b'L', b'O', b'C', b'H', b'E', 0x01];
const FLAG_BIT0: u8 = 1;
const TABLE_ENTRY_SIZE: usize = 28;

const ATTACH: u8 = 1;
const ATTACHED: u8 = 2;
const DATA: u8 = 3;
const WINDOW: u8 = 4;
const EOF: u8 = 5;
const STOP: u8 = 6;

/// A session key or a nonce.
pub type Key = [u8; KEY_SIZE];
/// The key of the first attach.
pub const ZERO_KEY: Key = [b'0'; KEY_SIZE];

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The header's type, flags, zero field, stream or length is not one of the specification's.
    #[error("malformed frame header")]
    Header,
    /// The byte after the payload is not the trailer.
    #[error("a frame does not end with its trailer")]
    Trailer,
    /// The payload of an ATTACH or ATTACHED cannot be read.
    #[error("malformed attach")]
    Attach(#[from] CodecError),
}

/// One line of the table in ATTACH and ATTACHED: a receiver of the side that sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Stream id.
    pub stream: u32,
    /// Offset of the next byte expected.
    pub received: u64,
    /// Offset up to which the final reader has taken the bytes.
    pub consumed: u64,
    /// The highest limit granted.
    pub limit: u64,
}

/// Payload of ATTACH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Protocol version of the host.
    pub version: u16,
    /// What the agent's answer must start with.
    pub nonce: Key,
    /// The host's receivers; empty when the version is not [`VERSION`].
    pub table: Vec<TableEntry>,
}

/// Payload of ATTACHED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Protocol version of the agent.
    pub version: u16,
    /// The agent's session key.
    pub session: Key,
    /// Whether this is the first attach.
    pub fresh: bool,
    /// The agent's receivers; empty when the version is not [`VERSION`].
    pub table: Vec<TableEntry>,
}

/// One frame; the bytes of DATA are borrowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The host starts or takes up the conversation.
    Attach(Attach),
    /// The agent's answer.
    Attached(Attached),
    /// Bytes of a stream.
    Data {
        /// Stream id.
        stream: u32,
        /// Offset of the first byte.
        offset: u64,
        /// 1 to [`MAX_DATA`] bytes.
        bytes: &'a [u8],
    },
    /// The receiver has consumed, and grants more.
    Window {
        /// Stream id.
        stream: u32,
        /// Everything below this offset was consumed.
        consumed: u64,
        /// The sender may send up to this offset.
        limit: u64,
        /// The final offset was consumed, the stream is forgotten.
        fin: bool,
    },
    /// The stream ends.
    Eof {
        /// Stream id.
        stream: u32,
        /// Offset of the end.
        offset: u64,
        /// The writer gave up.
        aborted: bool,
    },
    /// The reader is gone.
    Stop {
        /// Stream id.
        stream: u32,
    },
}

impl<'a> Frame<'a> {
    /// Takes the first frame of `input`. Returns it with its size in bytes, or `None` while it is not complete.
    ///
    /// # Errors
    /// [`FrameError`] when `input` does not start with a frame; this shows as early as its header.
    pub fn decode(input: &'a [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let mut r = Reader::new(input);
        if r.remaining() < HEADER_SIZE {
            return Ok(None);
        }
        let kind = r.u8()?;
        let flags = r.u8()?;
        let zero = r.u16()?;
        let stream = r.u32()?;
        let length = r.u32()? as usize;
        check_header(kind, flags, zero, stream, length)?;
        if r.remaining() <= length {
            return Ok(None);
        }
        let payload = r.take(length)?;
        if r.u8()? != TRAILER {
            return Err(FrameError::Trailer);
        }
        let frame = Self::decode_payload(kind, flags, stream, payload)?;
        Ok(Some((frame, HEADER_SIZE + length + 1)))
    }

    fn decode_payload(
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &'a [u8],
    ) -> Result<Self, FrameError> {
        let mut r = Reader::new(payload);
        let bit0 = flags & FLAG_BIT0 != 0;
        let frame = match kind {
            ATTACH => Self::Attach(Attach::read(&mut r)?),
            ATTACHED => Self::Attached(Attached::read(&mut r)?),
            DATA => Self::Data {
                stream,
                offset: r.u64()?,
                bytes: r.take(r.remaining())?,
            },
            WINDOW => Self::Window {
                stream,
                consumed: r.u64()?,
                limit: r.u64()?,
                fin: bit0,
            },
            EOF => Self::Eof {
                stream,
                offset: r.u64()?,
                aborted: bit0,
            },
            STOP => Self::Stop { stream },
            _ => return Err(FrameError::Header),
        };
        r.finish()?;
        Ok(frame)
    }

    /// Appends the frame's bytes to `out`. Bytes past [`MAX_DATA`] and table lines past [`MAX_ATTACH_PAYLOAD`] are not
    /// taken: the caller keeps both bounds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Attach(attach) => put(out, ATTACH, 0, 0, &attach.payload()),
            Self::Attached(attached) => put(out, ATTACHED, 0, 0, &attached.payload()),
            Self::Data {
                stream,
                offset,
                bytes,
            } => encode_data(out, *stream, *offset, &[bytes]),
            Self::Window {
                stream,
                consumed,
                limit,
                fin,
            } => {
                let mut payload = [0; 16];
                payload[..8].copy_from_slice(&consumed.to_le_bytes());
                payload[8..].copy_from_slice(&limit.to_le_bytes());
                put(out, WINDOW, u8::from(*fin), *stream, &payload);
            }
            Self::Eof {
                stream,
                offset,
                aborted,
            } => put(out, EOF, u8::from(*aborted), *stream, &offset.to_le_bytes()),
            Self::Stop { stream } => put(out, STOP, 0, *stream, &[]),
        }
    }
}

/// Appends a DATA frame whose bytes lie in several pieces (together at most [`MAX_DATA`]).
pub fn encode_data(out: &mut Vec<u8>, stream: u32, offset: u64, pieces: &[&[u8]]) {
    let total: usize = pieces.iter().map(|piece| piece.len()).sum();
    put_header(out, DATA, 0, stream, 8 + total);
    out.extend_from_slice(&offset.to_le_bytes());
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.push(TRAILER);
}

fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_header(out, kind, flags, stream, payload.len());
    out.extend_from_slice(payload);
    out.push(TRAILER);
}

fn put_header(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, length: usize) {
    out.extend_from_slice(&[kind, flags, 0, 0]);
    out.extend_from_slice(&stream.to_le_bytes());
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
}

fn check_header(
    kind: u8,
    flags: u8,
    zero: u16,
    stream: u32,
    length: usize,
) -> Result<(), FrameError> {
    let (allowed_flags, shortest, longest) = match kind {
        ATTACH | ATTACHED => (0, 0, MAX_ATTACH_PAYLOAD),
        DATA => (0, 9, MAX_PAYLOAD),
        WINDOW => (FLAG_BIT0, 16, 16),
        EOF => (FLAG_BIT0, 8, 8),
        STOP => (0, 0, 0),
        _ => return Err(FrameError::Header),
    };
    let wrong_stream = matches!(kind, ATTACH | ATTACHED) && stream != 0;
    if flags & !allowed_flags != 0
        || zero != 0
        || wrong_stream
        || !(shortest..=longest).contains(&length)
    {
        return Err(FrameError::Header);
    }
    Ok(())
}

impl Attach {
    fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        let version = r.u16()?;
        let nonce = read_key(r)?;
        let table = read_table(r, version)?;
        Ok(Self {
            version,
            nonce,
            table,
        })
    }

    fn payload(&self) -> Vec<u8> {
        let mut w = Writer::new(MAX_ATTACH_PAYLOAD);
        w.u16(self.version).raw(&self.nonce);
        write_table(&mut w, &self.table);
        w.finish().unwrap_or_default()
    }
}

impl Attached {
    fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        let version = r.u16()?;
        let session = read_key(r)?;
        let fresh = match (version, r.u8()?) {
            (_, 0) => false,
            (_, 1) => true,
            (VERSION, _) => return Err(CodecError::Invalid("fresh")),
            _ => false,
        };
        let table = read_table(r, version)?;
        Ok(Self {
            version,
            session,
            fresh,
            table,
        })
    }

    fn payload(&self) -> Vec<u8> {
        let mut w = Writer::new(MAX_ATTACH_PAYLOAD);
        w.u16(self.version)
            .raw(&self.session)
            .u8(u8::from(self.fresh));
        write_table(&mut w, &self.table);
        w.finish().unwrap_or_default()
    }
}

fn read_key(r: &mut Reader<'_>) -> Result<Key, CodecError> {
    let key: Key = r.array()?;
    if is_key(&key) {
        Ok(key)
    } else {
        Err(CodecError::Invalid("key"))
    }
}

/// Reads the table; of a version that is not ours, whose table may look different, nothing is read.
fn read_table(r: &mut Reader<'_>, version: u16) -> Result<Vec<TableEntry>, CodecError> {
    if version != VERSION {
        r.take(r.remaining())?;
        return Ok(Vec::new());
    }
    r.list(TABLE_ENTRY_SIZE, |r| {
        Ok(TableEntry {
            stream: r.u32()?,
            received: r.u64()?,
            consumed: r.u64()?,
            limit: r.u64()?,
        })
    })
}

fn write_table(w: &mut Writer, table: &[TableEntry]) {
    w.list(table, |w, entry| {
        w.u32(entry.stream)
            .u64(entry.received)
            .u64(entry.consumed)
            .u64(entry.limit);
    });
}

/// Whether `key` holds lower-case hexadecimal digits only.
#[must_use]
pub fn is_key(key: &Key) -> bool {
    key.iter()
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The bytes that start a byte stream.
#[must_use]
pub fn preface(key: &Key) -> [u8; PREFACE_SIZE] {
    let mut out = [0; PREFACE_SIZE];
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[MAGIC.len()..].copy_from_slice(key);
    out
}

/// Finds a preface in a byte stream that arrives in pieces.
///
/// The search (Horspool's) looks at about one byte in forty, because every byte the agent receives goes through it.
#[derive(Debug, Clone)]
pub struct PrefaceSearch {
    pattern: [u8; PREFACE_SIZE],
    /// How far the pattern may move on when this byte stands below its last position.
    shift: [u8; 256],
}

impl PrefaceSearch {
    /// A search for the preface with `key`.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        let pattern = preface(key);
        let mut shift = [PREFACE_SIZE as u8; 256];
        for (at, byte) in pattern[..PREFACE_SIZE - 1].iter().enumerate() {
            shift[usize::from(*byte)] = (PREFACE_SIZE - 1 - at) as u8;
        }
        Self { pattern, shift }
    }

    /// Where the first whole preface starts in `input`.
    #[must_use]
    pub fn find(&self, input: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(window) = input.get(at..at + PREFACE_SIZE) {
            if window == self.pattern {
                return Some(at);
            }
            at += usize::from(self.shift[usize::from(window[PREFACE_SIZE - 1])]);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The preface holds no trailer byte, so it can never complete a half frame.
    #[test]
    fn preface_has_no_trailer_byte() {
        assert!(!preface(&ZERO_KEY).contains(&TRAILER));
        assert!(!is_key(&[TRAILER; KEY_SIZE]));
    }

    /// A preface is found at every position, and not before its last byte is there.
    #[test]
    fn preface_is_found_everywhere() {
        let key = *b"0123456789abcdef0123456789abcdef";
        let search = PrefaceSearch::new(&key);
        for lead in 0..200 {
            let mut input: Vec<u8> = (0..lead).map(|at| preface(&key)[at % 17]).collect();
            input.extend_from_slice(&preface(&key));
            assert_eq!(search.find(&input), Some(lead));
            assert_eq!(search.find(&input[..input.len() - 1]), None);
        }
    }

    /// Every broken header is refused as soon as the header is there.
    #[test]
    fn broken_headers_are_refused() {
        let headers: [[u8; 12]; 8] = [
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [6, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            [6, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            [6, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0],
            [3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0],
            [3, 0, 0, 0, 2, 0, 0, 0, 9, 0, 1, 0],
            [1, 0, 0, 0, 2, 0, 0, 0, 38, 0, 0, 0],
        ];
        for header in headers {
            assert_eq!(Frame::decode(&header), Err(FrameError::Header));
        }
    }

    /// A frame without its trailer is not complete, with another last byte it is malformed.
    #[test]
    fn trailer_is_checked() {
        let mut bytes = Vec::new();
        Frame::Stop { stream: 2 }.encode(&mut bytes);
        assert_eq!(Frame::decode(&bytes[..12]), Ok(None));
        bytes[12] = 0;
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Trailer));
    }
}
