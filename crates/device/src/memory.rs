//! The guest's memory as the frontend shares it, and the log of what was written there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::DescriptorChain;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::inherited::file_length;

/// The guest's memory. The type of its bitmap is what virtiofsd's library wants; nothing is ever marked in it: what was
/// written is logged where a request is given back (see `DirtyLog`).
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;
/// A request: descriptors in the guest's memory.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// Most regions a frontend may share; each costs a descriptor.
pub(crate) const MAX_REGIONS: usize = 64;

/// One region as the frontend describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// Where it begins in the guest.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where it begins in the frontend.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

impl Region {
    fn overlaps(self, other: Region) -> bool {
        self.user < other.user.saturating_add(other.size)
            && other.user < self.user.saturating_add(self.size)
    }

    fn map(self, file: File) -> io::Result<GuestRegionMmap<BitmapMmapRegion>> {
        let size = usize::try_from(self.size).map_err(io::Error::other)?;
        let end = self.offset.checked_add(self.size);
        let length = file_length(&file)?;
        if end.is_none_or(|end| length < end) {
            return Err(io::Error::other(
                "memory that is smaller than it is said to be",
            ));
        }
        let region = MmapRegionBuilder::new_with_bitmap(size, BitmapMmapRegion::default())
            .with_file_offset(FileOffset::new(file, self.offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE | libc::MAP_SHARED)
            .build()
            .map_err(io::Error::other)?;
        GuestRegionMmap::new(region, GuestAddress(self.guest))
            .ok_or_else(|| io::Error::other("memory past the end of all addresses"))
    }
}

/// All regions, and how addresses of the frontend are found in them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    memory: Arc<Memory>,
    regions: Vec<Region>,
}

impl Table {
    /// The memory as it is now.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Replaces all regions.
    pub fn replace(&mut self, shared: Vec<(Region, File)>) -> io::Result<()> {
        let mut fresh = Table::default();
        for (region, file) in shared {
            fresh.add(region, file)?;
        }
        *self = fresh;
        Ok(())
    }

    /// Adds a region.
    pub fn add(&mut self, region: Region, file: File) -> io::Result<()> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(io::Error::other("too many memory regions"));
        }
        if self.regions.iter().any(|other| other.overlaps(region)) {
            return Err(io::Error::other("memory regions that overlap"));
        }
        let mapped = Arc::new(region.map(file)?);
        let memory = self
            .memory
            .insert_region(mapped)
            .map_err(io::Error::other)?;
        self.memory = Arc::new(memory);
        self.regions.push(region);
        Ok(())
    }

    /// Takes a region away.
    pub fn remove(&mut self, region: Region) -> io::Result<()> {
        let is_same = |other: &Region| {
            (other.guest, other.size, other.user) == (region.guest, region.size, region.user)
        };
        let place = self.regions.iter().position(is_same);
        let place = place.ok_or_else(|| io::Error::other("no such memory region"))?;
        let start = GuestAddress(region.guest);
        let (memory, _) = self
            .memory
            .remove_region(start, region.size)
            .map_err(io::Error::other)?;
        self.memory = Arc::new(memory);
        self.regions.remove(place);
        Ok(())
    }

    /// Where in the guest an address of the frontend is.
    pub fn translate(&self, user: u64) -> Option<u64> {
        let region = self
            .regions
            .iter()
            .find(|region| user >= region.user && user - region.user < region.size)?;
        Some(region.guest + (user - region.user))
    }
}

/// Bytes of the guest that one bit of the log stands for (`VHOST_LOG_PAGE`).
const LOG_PAGE: u64 = 4096;

/// The frontend's log of written pages, one bit each, for moving a guest while it runs.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    start: *mut libc::c_void,
    size: usize,
}

// SAFETY: nobody else has the pointer, and what it points to is only touched by atomic operations.
unsafe impl Send for DirtyLog {}
// SAFETY: likewise.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps the log.
    pub fn map(file: &File, offset: u64, size: u64) -> io::Result<Self> {
        let end = offset.checked_add(size);
        let length = file_length(file)?;
        if end.is_none_or(|end| length < end) {
            return Err(io::Error::other(
                "a log that is smaller than it is said to be",
            ));
        }
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping, wherever the kernel likes; `file` is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(DirtyLog { start, size })
    }

    /// Marks a range of the guest as written. What the log has no room for is left out.
    pub fn mark(&self, address: u64, length: u64) {
        let Some(last) = length.checked_sub(1) else {
            return;
        };
        let pages = address / LOG_PAGE..=address.saturating_add(last) / LOG_PAGE;
        for page in pages {
            let Some(byte) = usize::try_from(page / 8).ok().filter(|at| *at < self.size) else {
                return;
            };
            // SAFETY: `byte` lies inside the mapping, which lives as long as `self`; bytes need no alignment.
            let byte = unsafe { AtomicU8::from_ptr(self.start.cast::<u8>().add(byte)) };
            byte.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map`, and this was its only owner.
        unsafe { libc::munmap(self.start, self.size) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A file of `size` bytes without a name.
    fn file(size: u64) -> File {
        use std::os::fd::FromRawFd;
        // SAFETY: the name ends with a nul byte; the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
        file.set_len(size).unwrap();
        file
    }

    fn region(guest: u64, size: u64, user: u64, offset: u64) -> Region {
        Region {
            guest,
            size,
            user,
            offset,
        }
    }

    #[test]
    fn addresses_are_found_in_their_region_only() {
        let mut table = Table::default();
        let low = region(0, 0x1000, 0x7000_0000, 0);
        table.add(low, file(0x1000)).unwrap();
        let high = region(0x10_0000, 0x1000, 0x8000_0000, 0);
        table.add(high, file(0x1000)).unwrap();
        assert_eq!(table.translate(0x7000_0000), Some(0));
        assert_eq!(table.translate(0x8000_0FFF), Some(0x10_0FFF));
        for nowhere in [0, 0x6FFF_FFFF, 0x7000_1000, 0x8000_1000, u64::MAX] {
            assert_eq!(table.translate(nowhere), None);
        }
        table.remove(low).unwrap();
        assert!(table.remove(low).is_err());
        assert_eq!(table.translate(0x7000_0000), None);
    }

    #[test]
    fn regions_that_cannot_be_are_refused_and_change_nothing() {
        let mut table = Table::default();
        let first = region(0, 0x2000, 0x7000_0000, 0);
        table.add(first, file(0x2000)).unwrap();
        let wrong = [
            region(0x1000, 0x1000, 0x9000_0000, 0),
            region(0x9000, 0x1000, 0x7000_1000, 0),
            region(0x9000, 0x3000, 0x9000_0000, 0),
            region(0x9000, 0x1000, 0x9000_0000, 0x2000),
            region(0x9000, 0x1000, 0x9000_0000, u64::MAX),
            region(u64::MAX - 0xFFF, 0x2000, 0x9000_0000, 0),
            region(0x9000, 0, 0x9000_0000, 0),
        ];
        for region in wrong {
            assert!(table.add(region, file(0x2000)).is_err(), "{region:?}");
        }
        assert!(table
            .replace(vec![(first, file(0x2000)), (wrong[0], file(0x2000))])
            .is_err());
        assert_eq!(table.translate(0x7000_1000), Some(0x1000));
    }

    #[test]
    fn the_log_has_a_bit_for_each_page_and_never_more() {
        let file = file(2);
        let log = DirtyLog::map(&file, 0, 2).unwrap();
        log.mark(0x1FFF, 2);
        log.mark(9 * 0x1000, 1);
        log.mark(5 * 0x1000, 0);
        log.mark(15 * 0x1000, u64::MAX);
        log.mark(u64::MAX, u64::MAX);
        let mut bits = Vec::new();
        (&file).read_to_end(&mut bits).unwrap();
        assert_eq!(bits, [0b0000_0110, 0b1000_0010]);
        assert!(DirtyLog::map(&file, 0, 3).is_err());
        assert!(DirtyLog::map(&file, u64::MAX, 1).is_err());
    }
}
