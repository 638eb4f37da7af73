//! A guest's memory with one queue in it.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use cloche_device::{Memory, Vring};
use vm_memory::{Bytes, GuestAddress};

use crate::choices::Choices;

/// Bytes of memory.
pub const MEMORY: usize = 64 << 10;
/// Entries of the queue.
pub const SIZE: u16 = 16;
/// Where the descriptors are.
pub const TABLE: u64 = 0;
/// Where the requests are made known.
pub const AVAILABLE: u64 = 0x100;
/// Where they are given back.
pub const USED: u64 = 0x140;
/// Where other tables of descriptors may be.
const INDIRECT: u64 = 0x200;
/// From here on there is nothing but what requests lend.
pub const LENT: u64 = 0x1000;

/// A descriptor may be followed by another.
pub const NEXT: u16 = 1;
/// The device may write there.
pub const WRITE: u16 = 2;
/// It names a table of descriptors.
const TABLE_OF: u16 = 4;

/// A descriptor: where, how long, what, which one is next.
#[derive(Debug, Clone, Copy)]
pub struct Lending {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// A guest that runs nothing but this queue.
#[derive(Debug)]
pub struct Guest {
    pub memory: Arc<Memory>,
    pub vring: Vring,
}

/// An event descriptor that does not block.
pub fn event(count: u32) -> File {
    // SAFETY: no pointers; the descriptor is new and belongs to nobody.
    unsafe { File::from_raw_fd(libc::eventfd(count, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)) }
}

impl Guest {
    /// A guest whose memory begins with `content`.
    pub fn new(content: &[u8]) -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = Arc::new(Memory::from_ranges(&ranges).expect("there is memory"));
        let mut vring = Vring::new(SIZE).expect("a size of a queue");
        vring.set_memory(memory.clone());
        let guest = Guest { memory, vring };
        guest.write(0, content.get(..MEMORY).unwrap_or(content));
        guest
    }

    /// Starts the queue.
    pub fn start(&mut self, has_event_idx: bool) {
        let vring = &mut self.vring;
        vring.set_places(TABLE, AVAILABLE, USED).expect("places");
        vring.set_event_idx(has_event_idx);
        vring.start(event(0)).expect("there are no notes to read");
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.memory.write_slice(bytes, address).expect("it fits");
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = GuestAddress(address);
        self.memory
            .read_slice(&mut bytes, address)
            .expect("it is there");
        bytes
    }

    /// Writes one descriptor into a table.
    pub fn lend(&self, table: u64, index: u16, lending: &Lending) {
        let place = table + 16 * u64::from(index);
        self.write(place, &lending.address.to_le_bytes());
        self.write(place + 8, &lending.length.to_le_bytes());
        self.write(place + 12, &lending.flags.to_le_bytes());
        self.write(place + 14, &lending.next.to_le_bytes());
    }

    /// Makes a request known: its chain begins with the descriptor `head`, and it is the `number`th.
    pub fn offer(&self, number: u16, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(number % SIZE);
        self.write(entry, &head.to_le_bytes());
        self.write(AVAILABLE + 2, &number.wrapping_add(1).to_le_bytes());
    }

    /// Whether the first bytes of `before` from `start` on are as they were, but for those that `lent` lets the device
    /// change.
    pub fn check_untouched(&self, start: u64, before: &[u8], lent: &[Lending]) {
        let after = self.read(start, before.len());
        let mut wanted = before.to_vec();
        let length = before.len() as u64;
        for one in lent.iter().filter(|one| one.flags & WRITE != 0) {
            let end = one.address.saturating_add(one.length.into());
            let from = one.address.saturating_sub(start).min(length) as usize;
            let to = end.saturating_sub(start).min(length) as usize;
            wanted[from..to].copy_from_slice(&after[from..to]);
        }
        assert!(after == wanted, "something was written that was never lent");
    }
}

/// Makes up to a queue full of requests, in chains that are sound or not. Returns what the device may write; the tables
/// themselves are not lent, so that they say in the end what they said in the beginning.
pub fn lend_anything(guest: &Guest, choices: &mut Choices<'_>) -> Vec<Lending> {
    let mut all = Vec::new();
    let mut make = |table: u64, count: u16, choices: &mut Choices<'_>| {
        for index in 0..count {
            let lending = any_lending(index, choices);
            guest.lend(table, index, &lending);
            if lending.flags & TABLE_OF == 0 {
                all.push(lending);
            }
        }
    };
    make(TABLE, SIZE, choices);
    if choices.once_in(2) {
        make(INDIRECT, SIZE, choices);
        make(INDIRECT + 0x100, SIZE, choices);
    }
    for number in 0..1 + u16::from(choices.byte() % 8) {
        let head = u16::from(choices.byte());
        guest.offer(number, if head < 0xF0 { head % SIZE } else { head });
    }
    if choices.once_in(16) {
        guest.write(AVAILABLE + 2, &choices.u16().to_le_bytes());
    }
    let mut content = choices.rest();
    content = content.get(..MEMORY - LENT as usize).unwrap_or(content);
    guest.write(LENT, content);
    all
}

fn any_lending(index: u16, choices: &mut Choices<'_>) -> Lending {
    const LENGTHS: [u32; 10] = [0, 1, 15, 16, 17, 512, 513, 4096, 0x1_0000, u32::MAX];
    let kind = choices.byte();
    let mut flags = 0;
    if kind & 1 != 0 {
        flags |= WRITE;
    }
    if kind & 6 != 0 {
        flags |= NEXT;
    }
    let next = match kind & 0x18 {
        0 => u16::from(choices.byte()) % (SIZE + 1),
        _ => index + 1,
    };
    if kind & 0xE0 == 0xE0 {
        let table = INDIRECT + 0x100 * u64::from(choices.byte() % 2);
        return Lending {
            address: table,
            length: choices.pick(&[0x100, 0x10, 0x110, 0x101, 0]),
            flags: flags | TABLE_OF,
            next,
        };
    }
    let address = match kind & 0xE0 {
        0 => choices.number().max(LENT),
        _ => LENT + u64::from(choices.byte()) * 0xE0,
    };
    Lending {
        address,
        length: match kind & 0xE0 {
            0 | 0x20 => choices.number() as u32,
            _ => choices.pick(&LENGTHS),
        },
        flags,
        next,
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn what_is_written_and_was_not_lent_is_seen() {
        let guest = Guest::new(&[]);
        let lent = [Lending {
            address: LENT + 8,
            length: 4,
            flags: WRITE,
            next: 0,
        }];
        let before = guest.read(LENT, 64);
        guest.write(LENT + 8, b"fits");
        guest.check_untouched(LENT, &before, &lent);
        guest.write(LENT + 12, b"!");
        assert!(catch_unwind(|| guest.check_untouched(LENT, &before, &lent)).is_err());
    }
}
