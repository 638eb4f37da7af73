//! Requests: read, write, flush, name, discard, write zeros (virtio 1.2, 5.2.6).
//!
//! A request has a header of 16 bytes that the device reads, then data in either direction, then one byte for the
//! status. How these are spread over the chain's stretches is the guest's choice.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::bytes::{put_front, take_front, total_len};
use crate::config::{bit, features, Config, MAX_RANGES, MAX_RANGE_SECTORS, SECTOR};
use crate::storage::Storage;
use cloche_device::{Lent, Slice};

/// Bytes of a disk's name, at most.
pub const MAX_ID: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It was done.
    Done,
    /// It was not, or not wholly, done.
    Failed,
    /// It is not known, or was not negotiated.
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        let value = match self {
            Status::Done => VIRTIO_BLK_S_OK,
            Status::Failed => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value as u8
    }
}

struct Range {
    offset: u64,
    length: u64,
    flags: u32,
}

/// One disk: a storage and what was agreed about it with the guest.
#[derive(Debug)]
pub struct Disk<S> {
    storage: S,
    config: Config,
    size_bytes: u64,
    ident: [u8; MAX_ID],
    negotiated: u64,
    is_lost: bool,
    is_growing: bool,
    /// Nothing was changed since the last flush.
    is_flushed: bool,
}

impl<S: Storage> Disk<S> {
    /// Makes a disk with a name that the guest can ask for; more than [`MAX_ID`] bytes of it are not told.
    pub fn new(storage: S, ident: &[u8]) -> Self {
        let size_bytes = storage.size_bytes() / SECTOR * SECTOR;
        let mut padded = [0; MAX_ID];
        for (place, byte) in padded.iter_mut().zip(ident) {
            *place = *byte;
        }
        Disk {
            config: Config::new(size_bytes),
            storage,
            size_bytes,
            ident: padded,
            negotiated: 0,
            is_lost: false,
            is_growing: false,
            // The process before this one may have written.
            is_flushed: false,
        }
    }

    /// Whether its file may be larger when its process was started anew.
    #[must_use]
    pub fn growing(mut self, is_growing: bool) -> Self {
        self.is_growing = is_growing;
        self
    }

    /// See [`Disk::growing`].
    pub fn grows(&self) -> bool {
        self.is_growing
    }

    /// The block device's feature bits that are offered.
    pub fn offered(&self) -> u64 {
        features(self.storage.is_readonly())
    }

    /// What the guest, or who speaks for it, has accepted of them.
    pub fn negotiate(&mut self, accepted: u64) {
        self.negotiated = accepted;
    }

    /// The configuration space.
    pub fn space(&self) -> &[u8] {
        self.config.bytes()
    }

    /// What is behind it.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Does what a request asks, tells the status where there is room for it, and returns how many bytes were written
    /// into the guest's memory.
    pub fn answer(&mut self, lent: Lent<'_>) -> u32 {
        let Lent {
            mut readable,
            writable,
            last,
            fault,
            ..
        } = lent;
        let Some(place) = last else {
            log::warn!("a request without room for its status");
            return 0;
        };
        let (result, written) = match fault {
            None => self.carry_out(&mut readable, &writable),
            Some(fault) => {
                log::warn!("a request that cannot be carried out: {fault}");
                (Status::Failed, 0)
            }
        };
        place.copy_from(&[result.byte()]);
        // Bounded by the longest chain.
        u32::try_from(written + 1).unwrap_or(u32::MAX)
    }

    fn carry_out(
        &mut self,
        readable: &mut Vec<Slice<'_>>,
        writable: &[Slice<'_>],
    ) -> (Status, u64) {
        let mut header = [0; 16];
        if take_front(readable, &mut header) < header.len() {
            return (Status::Failed, 0);
        }
        let kind = u32_at(&header, 0);
        let sector = u64_at(&header, 8);
        match kind {
            VIRTIO_BLK_T_IN => {
                let length = total_len(writable);
                let read = self
                    .place(sector, length)
                    .and_then(|offset| self.storage.read(offset, writable));
                match read {
                    Ok(()) => (Status::Done, length),
                    Err(error) => (failed("read", &error), 0),
                }
            }
            VIRTIO_BLK_T_GET_ID => {
                let count = put_front(writable, &self.ident);
                (Status::Done, u64::try_from(count).unwrap_or(0))
            }
            VIRTIO_BLK_T_OUT => {
                let length = total_len(readable);
                let write = self
                    .changeable()
                    .and_then(|()| self.place(sector, length))
                    .and_then(|offset| self.storage.write(offset, readable));
                (self.settle("write", write), 0)
            }
            VIRTIO_BLK_T_FLUSH => match self.flush() {
                Ok(()) => (Status::Done, 0),
                Err(error) => (failed("flush", &error), 0),
            },
            VIRTIO_BLK_T_DISCARD if self.has(VIRTIO_BLK_F_DISCARD) => {
                (self.each_range(readable, 0, Self::discard), 0)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                (self.each_range(readable, known, Self::write_zeroes), 0)
            }
            _ => (Status::Unsupported, 0),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.negotiated & bit(feature) != 0
    }

    /// Where on the disk a request lies, if it lies on the disk.
    fn place(&self, sector: u64, length: u64) -> io::Result<u64> {
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|offset| offset.checked_add(length));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= self.size_bytes && length % SECTOR == 0 => {
                Ok(offset)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Before every change: also half of one that fails has to be flushed.
    fn changeable(&mut self) -> io::Result<()> {
        if self.storage.is_readonly() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.is_flushed = false;
        Ok(())
    }

    /// The end of a request that changed something. A guest that does not flush has every change made durable at once.
    fn settle(&mut self, what: &str, changed: io::Result<()>) -> Status {
        let settled = if self.has(VIRTIO_BLK_F_FLUSH) {
            changed
        } else {
            changed.and_then(|()| self.flush())
        };
        match settled {
            Ok(()) => Status::Done,
            Err(error) => failed(what, &error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // The kernel reports a page that it could not write once and forgets it: after that no success can be believed.
        if self.is_lost {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        // A host's disk takes its time for a flush of nothing as well, and guests ask for many.
        if self.is_flushed {
            return Ok(());
        }
        let flushed = self.storage.flush();
        self.is_lost = flushed.is_err();
        self.is_flushed = flushed.is_ok();
        flushed
    }

    fn each_range(
        &mut self,
        readable: &mut Vec<Slice<'_>>,
        known_flags: u32,
        act: impl Fn(&mut Self, &Range) -> io::Result<()>,
    ) -> Status {
        const SIZE: usize = 16;
        let mut bytes = [0; SIZE * MAX_RANGES];
        let length = total_len(readable);
        let count = take_front(readable, &mut bytes);
        if count == 0 || count % SIZE != 0 || u64::try_from(count).ok() != Some(length) {
            return Status::Failed;
        }
        if let Err(error) = self.changeable() {
            return failed("discard", &error);
        }
        // All are looked at before the first is carried out: a request is not done by half because it was malformed.
        let mut ranges = Vec::with_capacity(MAX_RANGES);
        for words in bytes.chunks_exact(SIZE).take(count / SIZE) {
            let (sector, sectors, flags) = (u64_at(words, 0), u32_at(words, 8), u32_at(words, 12));
            if flags & !known_flags != 0 {
                return Status::Unsupported;
            }
            let length = u64::from(sectors) * SECTOR;
            match self.place(sector, length) {
                Ok(offset) if sectors <= MAX_RANGE_SECTORS => ranges.push(Range {
                    offset,
                    length,
                    flags,
                }),
                _ => return Status::Failed,
            }
        }
        let acted = ranges.iter().try_for_each(|range| act(self, range));
        self.settle("discard", acted)
    }

    fn discard(&mut self, range: &Range) -> io::Result<()> {
        self.storage.discard(range.offset, range.length)
    }

    fn write_zeroes(&mut self, range: &Range) -> io::Result<()> {
        let may_unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        self.storage
            .write_zeroes(range.offset, range.length, may_unmap)
    }
}

fn failed(what: &str, error: &io::Error) -> Status {
    log::warn!("cannot {what}: {error}");
    Status::Failed
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    u32::from_le_bytes(field.copied().unwrap_or_default())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    u64::from_le_bytes(field.copied().unwrap_or_default())
}
