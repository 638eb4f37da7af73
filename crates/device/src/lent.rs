//! Descriptor chains: which parts of its memory a guest has lent for one request.
//!
//! The library's chains end silently where they are malformed and cannot be made again from the index of their head, so
//! devices that must tell how a request went, or do one again after a restart, walk them here.
//!
//! The guest writes descriptors and may write nonsense: chains that run in circles, that point outside its memory, that
//! are longer than any disk. Walking one takes a bounded number of steps and remembers a bounded number of stretches.

use std::mem::size_of;

use thiserror::Error;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, VolatileSlice};

use crate::memory::Memory;

/// A stretch of the guest's memory that lies in one mapping.
pub type Slice<'m> = VolatileSlice<'m, BitmapMmapRegion>;

/// Stretches of one request, at most.
pub const MAX_SLICES: usize = 1024;

/// Bytes of one request, at most.
pub const MAX_BYTES: u64 = 64 << 20;

/// Why a chain cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// More descriptors than the table has: it runs in a circle.
    #[error("a descriptor chain without an end")]
    Endless,
    /// The index of a descriptor that is not in the table.
    #[error("a descriptor that is not in the table")]
    BadIndex,
    /// A table of descriptors that is misaligned, empty, nested, or outside memory.
    #[error("a table of descriptors that cannot be read")]
    BadTable,
    /// A stretch that is not, or not wholly, in the guest's memory.
    #[error("a buffer outside of memory")]
    OutOfMemory,
    /// More than [`MAX_SLICES`] or [`MAX_BYTES`].
    #[error("a request of too many parts or bytes")]
    TooBig,
    /// Something to read after something to write.
    #[error("a readable buffer after a writable one")]
    Order,
}

/// What a guest has lent for one request.
#[derive(Debug)]
pub struct Lent<'m> {
    /// What the device may read, in order.
    pub readable: Vec<Slice<'m>>,
    /// What the device may write, in order, but for the last byte of it all.
    pub writable: Vec<Slice<'m>>,
    /// The last writable byte, for devices that tell there how it went. There is one only where the chain has an end.
    pub last: Option<Slice<'m>>,
    /// What is wrong with the rest. That can be told all the same, if there is a place for it.
    pub fault: Option<Fault>,
    /// Where it may be written: addresses and lengths.
    places: Vec<(u64, u64)>,
}

impl<'m> Lent<'m> {
    /// Follows the chain that begins at `head` in a table of `size` descriptors.
    #[must_use]
    pub fn walk(memory: &'m Memory, table: GuestAddress, size: u16, head: u16) -> Self {
        let mut lent = Lent {
            readable: Vec::new(),
            writable: Vec::new(),
            last: None,
            fault: None,
            places: Vec::new(),
        };
        let mut bytes = 0;
        let mut last = None;
        let ended = follow(memory, table, size, head, |descriptor| {
            if descriptor.is_write_only() && descriptor.len() > 0 {
                last = descriptor
                    .addr()
                    .checked_add(u64::from(descriptor.len()) - 1);
            }
            if lent.fault.is_none() {
                lent.fault = lent.add(memory, descriptor, &mut bytes).err();
            }
        });
        if let Err(fault) = ended {
            // Where its end would be is not known: nothing of it is touched.
            lent.fault = Some(fault);
            return lent;
        }
        if let Some(address) = last {
            lent.last = memory.get_slice(address, 1).ok();
            lent.places.push((address.raw_value(), 1));
        }
        lent.cut_last_byte();
        lent
    }

    fn add(
        &mut self,
        memory: &'m Memory,
        descriptor: &Descriptor,
        bytes: &mut u64,
    ) -> Result<(), Fault> {
        let (start, length) = (descriptor.addr(), descriptor.len());
        if length == 0 {
            return Ok(());
        }
        *bytes = bytes.saturating_add(u64::from(length));
        if *bytes > MAX_BYTES {
            return Err(Fault::TooBig);
        }
        let slices = if descriptor.is_write_only() {
            self.places.push((start.raw_value(), u64::from(length)));
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(Fault::Order);
        };
        let length = usize::try_from(length).map_err(|_| Fault::TooBig)?;
        for slice in memory.get_slices(start, length) {
            if slices.len() >= MAX_SLICES {
                return Err(Fault::TooBig);
            }
            slices.push(slice.map_err(|_| Fault::OutOfMemory)?);
        }
        Ok(())
    }

    /// Where the device may have written: addresses and lengths.
    pub(crate) fn into_places(self) -> Vec<(u64, u64)> {
        self.places
    }

    fn cut_last_byte(&mut self) {
        if let Some(last) = self.writable.pop() {
            if last.len() > 1 {
                self.writable.extend(last.subslice(0, last.len() - 1));
            }
        }
    }
}

/// Calls `each` with every descriptor until the last.
fn follow(
    memory: &Memory,
    table: GuestAddress,
    size: u16,
    head: u16,
    mut each: impl FnMut(&Descriptor),
) -> Result<(), Fault> {
    let (mut table, mut size, mut index) = (table, u32::from(size), u32::from(head));
    let mut steps = 0;
    let mut is_indirect = false;
    loop {
        if index >= size {
            return Err(Fault::BadIndex);
        }
        if steps >= size {
            return Err(Fault::Endless);
        }
        steps += 1;
        let offset = u64::from(index) * size_of::<Descriptor>() as u64;
        // Read once: the guest could change it between two looks.
        let descriptor: Descriptor = table
            .checked_add(offset)
            .and_then(|address| memory.read_obj(address).ok())
            .ok_or(Fault::BadTable)?;
        if descriptor.refers_to_indirect_table() {
            let entry = size_of::<Descriptor>() as u32;
            let count = descriptor.len() / entry;
            let is_whole = descriptor.len() % entry == 0;
            if is_indirect || !is_whole || count == 0 || count > u32::from(u16::MAX) {
                return Err(Fault::BadTable);
            }
            // Everything that follows stands in the other table (virtio 1.2, 2.7.5.3.1: no NEXT beside INDIRECT).
            (table, size, index, steps) = (descriptor.addr(), count, 0, 0);
            is_indirect = true;
            continue;
        }
        each(&descriptor);
        if !descriptor.has_next() {
            return Ok(());
        }
        index = u32::from(descriptor.next());
    }
}
