//! A virtio entropy device (virtio 1.2, 5.4): one queue, whose buffers are filled with random bytes of the host's kernel.

use std::io;

use cloche_device::{
    Broken, Chain, Device, Kind, Memory, Progress, Reconnect, Syntax, Vring, Written,
};
use vm_memory::{Bytes, GuestAddress};

/// The most one request gets; a guest's kernel asks for 64 bytes or so. What a guest takes costs the host's processor, so no
/// single request may take long.
pub const MAX_BYTES: usize = 4096;

/// Bytes got from the kernel at a time: up to this many come whole, and no signal interrupts them (getrandom(2)).
const PIECE: usize = 256;

/// As many as QEMU's virtio-mmio offers a guest, whatever the device would like.
const QUEUE_SIZE: u16 = 1024;

/// A guest's kernel asks for the next 64 bytes when it has used up the last, a tenth of a millisecond later. So many looks take
/// two or three times as long.
const LOOKS: u32 = 400;

/// The entropy device as a kind of device.
pub const KIND: Kind = Kind {
    name: "rng",
    syntax: Syntax {
        values: &[],
        flags: &[],
        fds: &[],
    },
    // QEMU does not connect again.
    reconnect: Reconnect::Exit,
    read: |_| Ok(Box::new(|_| Ok(Box::new(Entropy::new())))),
};

/// The device. It keeps nothing: not one random byte outlives its request.
#[derive(Debug, Default)]
pub struct Entropy(());

impl Entropy {
    /// Makes the device.
    #[must_use]
    pub fn new() -> Self {
        Entropy::default()
    }
}

impl Device for Entropy {
    fn queues(&self) -> usize {
        1
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn looks(&self) -> u32 {
        LOOKS
    }

    fn process(&mut self, _queue: usize, vring: &mut Vring) -> Result<Progress, Broken> {
        vring.serve(|request| {
            let memory = request.memory();
            let chain = request.into_chain();
            Written::Front(chain.map_or(0, |chain| fill(memory, chain, kernel_random)))
        })
    }
}

/// Fills the buffers of a request from `source`, up to [`MAX_BYTES`]; returns how many bytes it wrote.
///
/// What the guest may not have written to, or has no memory for, is where it stops.
pub fn fill(
    memory: &Memory,
    chain: Chain,
    mut source: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> u32 {
    let mut written: usize = 0;
    let mut piece = [0; PIECE];
    for buffer in chain.writable() {
        let mut address = buffer.addr();
        let mut wanted = (buffer.len() as usize).min(MAX_BYTES - written);
        while wanted > 0 {
            let length = wanted.min(PIECE);
            let piece = &mut piece[..length];
            if let Err(error) = source(piece) {
                log::error!("the kernel gives no random bytes: {error}");
                return count(written);
            }
            if let Err(error) = memory.write_slice(piece, address) {
                log::warn!("the guest has no memory where it wants random bytes: {error}");
                return count(written);
            }
            written += length;
            wanted -= length;
            // Past the end of all addresses there is no memory, and the next write says so.
            address = GuestAddress(address.0.saturating_add(length as u64));
        }
        if written == MAX_BYTES {
            break;
        }
    }
    count(written)
}

fn count(written: usize) -> u32 {
    u32::try_from(written).unwrap_or(0)
}

fn kernel_random(piece: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes at most as many bytes as the slice has.
    let got = unsafe { libc::getrandom(piece.as_mut_ptr().cast(), piece.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == piece.len() => Ok(()),
        Ok(_) => Err(io::Error::other("too few")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::desc::split::Descriptor as SplitDescriptor;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT};

    use super::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    const MEMORY: usize = 0x10_0000;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
    }

    fn ones(piece: &mut [u8]) -> io::Result<()> {
        piece.fill(1);
        Ok(())
    }

    /// Fills the one request made of these descriptors: address, length, flags, next.
    fn filled(memory: &Arc<Memory>, descriptors: &[(u64, u32, u16, u16)]) -> u32 {
        let mock = MockSplitQueue::new(&**memory, 16);
        for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = SplitDescriptor::new(*address, *length, *flags, *next);
            mock.desc_table()
                .store(
                    u16::try_from(index).unwrap(),
                    RawDescriptor::from(descriptor),
                )
                .unwrap();
        }
        mock.avail().ring().ref_at(0).unwrap().store(0);
        mock.avail().idx().store(1);
        let mut queue: Queue = mock.create_queue().unwrap();
        let chain = queue.iter(memory.clone()).unwrap().next().unwrap();
        fill(memory, chain, ones)
    }

    #[test]
    fn every_writable_byte_is_filled_and_no_other() {
        let memory = memory();
        let descriptors = [
            (0x8000, 100, WRITE | NEXT, 1),
            (0x9000, 10, NEXT, 2),
            (0xA000, 300, WRITE, 0),
        ];
        assert_eq!(filled(&memory, &descriptors), 400);
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!((byte(0x8000), byte(0x8063), byte(0x8064)), (1, 1, 0));
        assert_eq!((byte(0x9000), byte(0xA000), byte(0xA12B)), (0, 1, 1));
        assert_eq!(byte(0xA12C), 0);
    }

    #[test]
    fn one_request_gets_so_much_and_no_more() {
        let memory = memory();
        assert_eq!(filled(&memory, &[(0x8000, 0x8_0000, WRITE, 0)]), 4096);
        let two = [(0x8000, 4000, WRITE | NEXT, 1), (0xA000, 4000, WRITE, 0)];
        assert_eq!(filled(&memory, &two), 4096);
    }

    #[test]
    fn memory_that_is_not_there_ends_a_request() {
        let memory = memory();
        for address in [MEMORY as u64, u64::MAX, u64::MAX - 100, 1 << 63] {
            assert_eq!(filled(&memory, &[(address, 100, WRITE, 0)]), 0);
        }
        let end = MEMORY as u64 - 256;
        assert_eq!(filled(&memory, &[(end, u32::MAX, WRITE, 0)]), 256);
    }

    #[test]
    fn loops_come_to_an_end() {
        let memory = memory();
        assert_eq!(filled(&memory, &[(0x8000, 1, WRITE | NEXT, 0)]), 16);
        let two = [(0x8000, 0, WRITE | NEXT, 1), (0x9000, 0, WRITE | NEXT, 0)];
        assert_eq!(filled(&memory, &two), 0);
        assert_eq!(filled(&memory, &[(0x8000, 8, WRITE | NEXT, 999)]), 8);
    }

    #[test]
    fn tables_of_descriptors_that_name_themselves_come_to_an_end() {
        let memory = memory();
        // A table at 0x8000 whose one descriptor says that it is a table at 0x8000.
        let inner = SplitDescriptor::new(0x8000, 16, INDIRECT | NEXT, 0);
        memory
            .write_obj(RawDescriptor::from(inner), GuestAddress(0x8000))
            .unwrap();
        assert_eq!(filled(&memory, &[(0x8000, 16, INDIRECT, 0)]), 0);
        assert_eq!(filled(&memory, &[(0x8000, u32::MAX, INDIRECT, 0)]), 0);
        assert_eq!(filled(&memory, &[(u64::MAX, 16, INDIRECT, 0)]), 0);
    }

    #[test]
    fn a_kernel_without_random_bytes_gives_none() {
        let memory = memory();
        let mock = MockSplitQueue::new(&*memory, 16);
        let descriptor = SplitDescriptor::new(0x8000, 100, WRITE, 0);
        mock.desc_table()
            .store(0, RawDescriptor::from(descriptor))
            .unwrap();
        mock.avail().idx().store(1);
        let mut queue: Queue = mock.create_queue().unwrap();
        let chain = queue.iter(memory.clone()).unwrap().next().unwrap();
        assert_eq!(fill(&memory, chain, |_| Err(io::Error::other("none"))), 0);
    }

    #[test]
    fn the_kernel_gives_different_bytes() {
        let (mut one, mut other) = ([0; PIECE], [0; PIECE]);
        kernel_random(&mut one).unwrap();
        kernel_random(&mut other).unwrap();
        assert_ne!(one, other);
    }
}
