//! Requests in flight: a note, in memory that the VMM keeps, of what was taken from a ring and not given back.
//!
//! When the device process dies, the next one reads there what it has to do again. The layout is that of a split ring in the
//! vhost-user specification, "Inflight I/O tracking". The memory belongs to the VMM, so nothing read from it is believed.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicU8, Ordering};

use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError};

const VERSION: u16 = 1;
// Of the header (QueueRegionSplit): features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16.
const OFFSET_VERSION: usize = 8;
const OFFSET_DESC_NUM: usize = 10;
const OFFSET_LAST_HEAD: usize = 12;
const OFFSET_USED_INDEX: usize = 14;
const HEADER: usize = 16;
// Of one descriptor (DescStateSplit): inflight u8, padding, next u16, counter u64.
const OFFSET_NEXT: usize = 6;
const OFFSET_COUNTER: usize = 8;
const ENTRY: usize = 16;
/// What the region of one ring is rounded up to.
const ALIGNMENT: usize = 64;

/// Why the memory cannot be used.
#[derive(Debug, Error)]
pub enum InflightError {
    /// It cannot be mapped.
    #[error("cannot map the notes on requests in flight: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// It is smaller than the notes of its rings.
    #[error("the notes on requests in flight have no room")]
    TooSmall,
    /// A place outside of it.
    #[error("a note on a request in flight has no place")]
    Place(#[from] VolatileMemoryError),
    /// It was written in another layout.
    #[error("the notes on requests in flight are of another version")]
    Version,
}

/// Bytes that the notes of one ring with `size` descriptors take.
#[must_use]
pub fn region_size(size: u16) -> usize {
    (HEADER + ENTRY * usize::from(size)).next_multiple_of(ALIGNMENT)
}

/// The notes of one ring.
#[derive(Debug)]
pub struct Inflight {
    region: MmapRegion,
    start: usize,
    size: u16,
    counter: u64,
}

impl Inflight {
    /// Maps the notes of ring `index` out of a file with those of all rings, each with `size` descriptors.
    ///
    /// # Errors
    /// When it cannot be mapped or does not hold them.
    pub fn map(
        file: FileOffset,
        length: u64,
        index: u16,
        size: u16,
    ) -> Result<Self, InflightError> {
        let length = usize::try_from(length).map_err(|_| InflightError::TooSmall)?;
        let start = region_size(size) * usize::from(index);
        if length < start + region_size(size) {
            return Err(InflightError::TooSmall);
        }
        let region = MmapRegion::from_file(file, length)?;
        Ok(Inflight {
            region,
            start,
            size,
            counter: 0,
        })
    }

    /// Reads what another process has left, `used_index` being what the ring itself says was given back.
    ///
    /// Returns the heads of what was taken and not given back, oldest first.
    ///
    /// # Errors
    /// When the notes are not in this layout.
    pub fn recover(&mut self, used_index: u16) -> Result<Vec<u16>, InflightError> {
        match self.u16_at(OFFSET_VERSION)?.load(Ordering::Acquire) {
            // Fresh memory: the VMM has zeroed it.
            0 => {
                self.u16_at(OFFSET_DESC_NUM)?
                    .store(self.size, Ordering::Release);
                self.u16_at(OFFSET_VERSION)?
                    .store(VERSION, Ordering::Release);
            }
            VERSION if self.u16_at(OFFSET_DESC_NUM)?.load(Ordering::Acquire) == self.size => {}
            _ => return Err(InflightError::Version),
        }
        let noted = self.u16_at(OFFSET_USED_INDEX)?;
        if noted.load(Ordering::Acquire) != used_index {
            // It died between giving the last one back and noting so.
            let last = self.u16_at(OFFSET_LAST_HEAD)?.load(Ordering::Acquire);
            if last < self.size {
                self.mark(last)?.store(0, Ordering::Release);
            }
        }
        noted.store(used_index, Ordering::Release);
        let mut left = Vec::new();
        for head in 0..self.size {
            if self.mark(head)?.load(Ordering::Acquire) == 1 {
                left.push((self.counter_of(head)?.load(Ordering::Acquire), head));
            }
        }
        left.sort_unstable();
        self.counter = left
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(left.into_iter().map(|(_, head)| head).collect())
    }

    /// Notes that a request was taken from the ring.
    ///
    /// # Errors
    /// When there is no room for this descriptor.
    pub fn taken(&mut self, head: u16) -> Result<(), InflightError> {
        self.counter_of(head)?
            .store(self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head)?.store(1, Ordering::SeqCst);
        Ok(())
    }

    /// Notes which request is the next to be given back.
    ///
    /// # Errors
    /// As for [`Inflight::taken`].
    pub fn returning(&mut self, head: u16) -> Result<(), InflightError> {
        let last = self.u16_at(OFFSET_LAST_HEAD)?;
        let next = self.place(head).map(|place| place + OFFSET_NEXT)?;
        self.atomic::<AtomicU16>(next)?
            .store(last.load(Ordering::Acquire), Ordering::Release);
        last.store(head, Ordering::SeqCst);
        Ok(())
    }

    /// Notes that it was given back, `used_index` being what the ring says now.
    ///
    /// # Errors
    /// As for [`Inflight::taken`].
    pub fn returned(&mut self, head: u16, used_index: u16) -> Result<(), InflightError> {
        self.mark(head)?.store(0, Ordering::SeqCst);
        self.u16_at(OFFSET_USED_INDEX)?
            .store(used_index, Ordering::SeqCst);
        Ok(())
    }

    fn place(&self, head: u16) -> Result<usize, InflightError> {
        if head >= self.size {
            return Err(InflightError::TooSmall);
        }
        Ok(self.start + HEADER + ENTRY * usize::from(head))
    }

    fn mark(&self, head: u16) -> Result<&AtomicU8, InflightError> {
        self.atomic(self.place(head)?)
    }

    fn counter_of(&self, head: u16) -> Result<&AtomicU64, InflightError> {
        self.atomic(self.place(head)? + OFFSET_COUNTER)
    }

    fn u16_at(&self, offset: usize) -> Result<&AtomicU16, InflightError> {
        self.atomic(self.start + offset)
    }

    fn atomic<T: vm_memory::AtomicInteger>(&self, offset: usize) -> Result<&T, InflightError> {
        Ok(self.region.get_atomic_ref(offset)?)
    }
}

/// Makes fresh memory for the notes of `queues` rings, as the VMM asks for, and returns it with its size.
///
/// # Errors
/// When there is no memory.
pub fn create(queues: u16, size: u16) -> io::Result<(std::fs::File, u64)> {
    use std::os::fd::FromRawFd;
    // SAFETY: a C string and no pointers besides.
    let fd = unsafe { libc::memfd_create(c"inflight".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    let length = (region_size(size) * usize::from(queues)) as u64;
    file.set_len(length)?;
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(file: &std::fs::File, length: u64) -> Inflight {
        let file = FileOffset::new(file.try_clone().unwrap(), 0);
        Inflight::map(file, length, 0, 8).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_returned_is_found_oldest_first() {
        let (file, length) = create(1, 8).unwrap();
        let mut before = notes(&file, length);
        assert!(before.recover(0).unwrap().is_empty());
        for head in [5, 2, 7] {
            before.taken(head).unwrap();
        }
        before.returning(2).unwrap();
        before.returned(2, 1).unwrap();
        let mut after = notes(&file, length);
        assert_eq!(after.recover(1).unwrap(), [5, 7]);
        after.taken(0).unwrap();
        assert_eq!(notes(&file, length).recover(1).unwrap(), [5, 7, 0]);
    }

    #[test]
    fn a_request_that_was_returned_but_not_noted_is_not_done_again() {
        let (file, length) = create(1, 8).unwrap();
        let mut before = notes(&file, length);
        before.recover(0).unwrap();
        before.taken(3).unwrap();
        before.taken(4).unwrap();
        before.returning(3).unwrap();
        assert_eq!(notes(&file, length).recover(1).unwrap(), [4]);
    }

    #[test]
    fn a_request_that_was_about_to_be_returned_is_done_again() {
        let (file, length) = create(1, 8).unwrap();
        let mut before = notes(&file, length);
        before.recover(0).unwrap();
        before.taken(3).unwrap();
        before.returning(3).unwrap();
        assert_eq!(notes(&file, length).recover(0).unwrap(), [3]);
    }

    #[test]
    fn nothing_in_the_memory_is_believed() {
        let (file, length) = create(1, 8).unwrap();
        use std::os::unix::fs::FileExt;
        file.write_all_at(&vec![0xff; length as usize], 0).unwrap();
        assert!(notes(&file, length).recover(0).is_err());
        file.write_all_at(&vec![1; length as usize], 0).unwrap();
        assert!(notes(&file, length).recover(0).is_err());
        assert!(notes(&file, length).taken(8).is_err());
        let short = FileOffset::new(file.try_clone().unwrap(), 0);
        assert!(Inflight::map(short, length - 1, 0, 8).is_err());
        let beyond = FileOffset::new(file, 0);
        assert!(Inflight::map(beyond, length, 1, 8).is_err());
    }
}
