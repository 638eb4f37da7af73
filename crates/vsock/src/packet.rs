//! Packets between a guest and its host: a header, and bytes of a stream behind it (virtio 1.2, 5.10.6).
//!
//! They are read and written in however many parts the guest has lent for them: Linux sends what a program gives away with
//! `MSG_ZEROCOPY` in one part for each page.

use cloche_device::{Memory, Request};
use vm_memory::{Address, Bytes};

/// Bytes of a header.
pub const HEADER: usize = 44;
/// Bytes behind it, at most: what Linux sends at a time (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MOST_DATA: usize = 64 << 10;

/// The address of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;
/// A stream of bytes, the one type that is offered.
pub const STREAM: u16 = 1;

/// What a packet says (`VIRTIO_VSOCK_OP_*`).
pub mod op {
    /// A connection is asked for.
    pub const REQUEST: u16 = 1;
    /// It is accepted.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or not any more.
    pub const RST: u16 = 3;
    /// One side ends a direction.
    pub const SHUTDOWN: u16 = 4;
    /// Bytes.
    pub const RW: u16 = 5;
    /// How much may be sent.
    pub const CREDIT_UPDATE: u16 = 6;
    /// That is asked for.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Whoever says [`op::SHUTDOWN`] receives no more.
pub const NO_MORE_RECEIVED: u32 = 1;
/// Whoever says [`op::SHUTDOWN`] sends no more.
pub const NO_MORE_SENT: u32 = 2;

/// The header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The address of who sends it.
    pub src_cid: u64,
    /// The address of whom it is for.
    pub dst_cid: u64,
    /// The port of who sends it.
    pub src_port: u32,
    /// The port of whom it is for.
    pub dst_port: u32,
    /// Bytes behind it.
    pub length: u32,
    /// What kind of socket it is about.
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// What it says besides.
    pub flags: u32,
    /// How many bytes of the other side the sender keeps at most (`buf_alloc`).
    pub room: u32,
    /// How many bytes the sender has handed on until now, modulo 2^32 (`fwd_cnt`).
    pub taken: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut left = &bytes[..];
        Header {
            src_cid: u64::from_le_bytes(take(&mut left)),
            dst_cid: u64::from_le_bytes(take(&mut left)),
            src_port: u32::from_le_bytes(take(&mut left)),
            dst_port: u32::from_le_bytes(take(&mut left)),
            length: u32::from_le_bytes(take(&mut left)),
            kind: u16::from_le_bytes(take(&mut left)),
            op: u16::from_le_bytes(take(&mut left)),
            flags: u32::from_le_bytes(take(&mut left)),
            room: u32::from_le_bytes(take(&mut left)),
            taken: u32::from_le_bytes(take(&mut left)),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut left = &mut bytes[..];
        put(&mut left, &self.src_cid.to_le_bytes());
        put(&mut left, &self.dst_cid.to_le_bytes());
        put(&mut left, &self.src_port.to_le_bytes());
        put(&mut left, &self.dst_port.to_le_bytes());
        put(&mut left, &self.length.to_le_bytes());
        put(&mut left, &self.kind.to_le_bytes());
        put(&mut left, &self.op.to_le_bytes());
        put(&mut left, &self.flags.to_le_bytes());
        put(&mut left, &self.room.to_le_bytes());
        put(&mut left, &self.taken.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(left: &mut &[u8]) -> [u8; N] {
    left.split_first_chunk().map_or([0; N], |(first, rest)| {
        *left = rest;
        *first
    })
}

fn put(left: &mut &mut [u8], bytes: &[u8]) {
    if let Some((first, rest)) = std::mem::take(left).split_at_mut_checked(bytes.len()) {
        first.copy_from_slice(bytes);
        *left = rest;
    }
}

/// Copies what the guest may have read, up to as much as there is room for. Returns how many bytes that were, and whether that
/// was all; what is not in the guest's memory ends it.
pub fn gather(request: Request<'_>, room: &mut [u8]) -> (usize, bool) {
    let memory: &Memory = request.memory();
    let mut done = 0;
    let Some(chain) = request.into_chain() else {
        return (0, false);
    };
    for buffer in chain.readable() {
        let length = buffer.len() as usize;
        let place = room.get_mut(done..).unwrap_or_default();
        let count = length.min(place.len());
        if memory
            .read_slice(&mut place[..count], buffer.addr())
            .is_err()
        {
            return (done, false);
        }
        done += count;
        if count < length {
            return (done, false);
        }
    }
    (done, true)
}

/// Writes a header, and of `data` what the guest has room for behind it. Returns how many bytes of `data` that were; `None`
/// where there is no room for a header, for anything of `data`, or no memory.
pub fn scatter(request: Request<'_>, mut header: Header, data: &[u8]) -> Option<usize> {
    let memory: &Memory = request.memory();
    let chain = request.into_chain()?;
    let room = chain
        .clone()
        .writable()
        .fold(0_u64, |sum, buffer| sum.saturating_add(buffer.len().into()));
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let count = data.len().min(room.checked_sub(HEADER)?);
    if count == 0 && !data.is_empty() {
        return None;
    }
    header.length = u32::try_from(count).ok()?;
    let head = header.bytes();
    let mut parts = [&head[..], &data[..count]].into_iter();
    let mut part = parts.next().unwrap_or_default();
    for buffer in chain.writable() {
        let mut address = buffer.addr();
        let mut left = buffer.len() as usize;
        while left > 0 {
            if part.is_empty() {
                match parts.next() {
                    Some(next) => part = next,
                    None => break,
                }
            }
            let (now, later) = part.split_at(left.min(part.len()));
            memory.write_slice(now, address).ok()?;
            address = address.unchecked_add(now.len() as u64);
            left -= now.len();
            part = later;
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: u32::MAX,
            length: 5,
            kind: STREAM,
            op: op::RW,
            flags: NO_MORE_SENT,
            room: 1 << 16,
            taken: 7,
        };
        let bytes = header.bytes();
        assert_eq!(Header::parse(&bytes), header);
        assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[40..], [7, 0, 0, 0]);
    }
}
