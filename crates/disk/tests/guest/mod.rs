//! A guest's driver and a storage in memory, for tests.
#![allow(dead_code)] // each test uses its part

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use cloche_device::{Broken, Memory, Progress, Slice, Vring, Written};
use cloche_disk::bytes::{put_front, take_front, total_len};
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;
use vm_memory::{Bytes, GuestAddress};

pub const TABLE: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x3000;
pub const USED: u64 = 0x4000;
pub const BUFFERS: u64 = 0x10000;
pub const MEMORY: usize = 4 << 20;
pub const SIZE: u16 = 64;
pub const SECTOR: usize = 512;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const F_FLUSH: u64 = 1 << 9;
pub const F_ALL: u64 = 1 << 9 | 1 << 13 | 1 << 14;

const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// What a status holds until it is written.
pub const UNTOUCHED: u8 = 0xee;
const ROOM: u64 = 0x8000;

/// A part of a request: address, length, flags.
pub type Part = (u64, u32, u16);

/// An event that nobody waits for.
pub fn event() -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: the descriptor was just made and belongs to nobody.
    unsafe { File::from_raw_fd(fd) }
}

/// A guest with one queue. Request `n` of a round uses the descriptors and buffers of its own.
pub struct Guest {
    pub memory: Arc<Memory>,
    pub offered: u16,
    pub size: u16,
}

impl Guest {
    pub fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Guest {
            memory: Arc::new(memory),
            offered: 0,
            size: SIZE,
        }
    }

    /// A queue as the frontend sets it up.
    pub fn vring(&self) -> Vring {
        let mut vring = Vring::new(256).unwrap();
        vring.set_memory(self.memory.clone());
        vring.set_size(self.size.into()).unwrap();
        vring.set_places(TABLE, AVAILABLE, USED).unwrap();
        vring
    }

    pub fn started(&self) -> Vring {
        let mut vring = self.vring();
        vring.set_next(self.used());
        vring.start(event()).unwrap();
        vring
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    pub fn descriptor(&self, table: u64, index: u16, part: Part, next: Option<u16>) {
        let flags = part.2 | if next.is_some() { NEXT } else { 0 };
        let place = table + 16 * u64::from(index);
        self.write(place, &part.0.to_le_bytes());
        self.write(place + 8, &part.1.to_le_bytes());
        self.write(place + 12, &flags.to_le_bytes());
        self.write(place + 14, &next.unwrap_or(0).to_le_bytes());
    }

    /// Puts a head into the ring.
    pub fn offer(&mut self, head: u16) {
        let place = AVAILABLE + 4 + 2 * u64::from(self.offered % self.size);
        self.write(place, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.offered.to_le_bytes());
    }

    /// Offers a chain of these parts from descriptor `head` on.
    pub fn chain(&mut self, head: u16, parts: &[Part]) {
        for (index, part) in (head..).zip(parts) {
            let is_last = usize::from(index - head) + 1 == parts.len();
            self.descriptor(TABLE, index, *part, (!is_last).then_some(index + 1));
        }
        self.offer(head);
    }

    pub fn room(head: u16) -> u64 {
        BUFFERS + ROOM * u64::from(head)
    }

    /// Offers a request as Linux makes them: header, data, status. Its head must be a multiple of 3.
    pub fn request(&mut self, head: u16, kind: u32, sector: u64, out: &[u8], room: u32) {
        let start = Self::room(head);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.write(start, &header);
        self.write(start + 16, &[UNTOUCHED]);
        let mut parts = vec![(start, 16, 0)];
        if !out.is_empty() {
            self.write(start + 512, out);
            parts.push((start + 512, out.len() as u32, 0));
        }
        if room > 0 {
            parts.push((start + 512, room, WRITE));
        }
        parts.push((start + 16, 1, WRITE));
        self.chain(head, &parts);
    }

    pub fn status(&self, head: u16) -> u8 {
        self.read(Self::room(head) + 16, 1)[0]
    }

    pub fn data(&self, head: u16, length: usize) -> Vec<u8> {
        self.read(Self::room(head) + 512, length)
    }

    /// How many requests were given back.
    pub fn used(&self) -> u16 {
        u16::from_le_bytes(self.read(USED + 2, 2).try_into().unwrap())
    }

    /// The heads and lengths that were given back since `from`.
    pub fn given_back(&self, from: u16) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        let mut index = from;
        while index != self.used() {
            let place = USED + 4 + 8 * u64::from(index % self.size);
            let bytes = self.read(place, 8);
            found.push((
                u32::from_le_bytes(bytes[..4].try_into().unwrap()),
                u32::from_le_bytes(bytes[4..].try_into().unwrap()),
            ));
            index = index.wrapping_add(1);
        }
        found
    }

    /// One request from beginning to end: its status.
    pub fn ask<S: Storage>(
        &mut self,
        disk: &mut Disk<S>,
        kind: u32,
        sector: u64,
        out: &[u8],
        room: u32,
    ) -> u8 {
        self.request(0, kind, sector, out, room);
        serve(&mut self.started(), disk).unwrap();
        self.status(0)
    }
}

pub fn serve<S: Storage>(vring: &mut Vring, disk: &mut Disk<S>) -> Result<Progress, Broken> {
    vring.serve(|request| Written::Anywhere(disk.answer(request.lent())))
}

/// The payload of a discard or write-zeroes request.
pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// What happened to a storage.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bytes were put at an offset.
    Put(usize, Vec<u8>),
    /// It was flushed.
    Flush,
}

/// A storage in memory that remembers what happened to it.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub bytes: Vec<u8>,
    pub changes: Vec<Change>,
    pub is_readonly: bool,
    /// What the next flushes say, and the next writes.
    pub failing_flushes: u32,
    pub failing_writes: u32,
}

impl Recorded {
    pub fn new(sectors: usize) -> Self {
        Recorded {
            bytes: vec![0; sectors * SECTOR],
            changes: Vec::new(),
            is_readonly: false,
            failing_flushes: 0,
            failing_writes: 0,
        }
    }

    fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        let start = usize::try_from(offset).unwrap();
        // Panics where a request reaches beyond the disk: nothing may come here that does.
        self.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
        self.changes.push(Change::Put(start, bytes));
    }
}

impl Storage for Recorded {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn is_readonly(&self) -> bool {
        self.is_readonly
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let length = usize::try_from(total_len(into)).unwrap();
        put_front(into, &self.bytes[start..start + length]);
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        assert!(!self.is_readonly);
        if self.failing_writes > 0 {
            self.failing_writes -= 1;
            return Err(io::Error::other("no"));
        }
        let mut bytes = vec![0; usize::try_from(total_len(from)).unwrap()];
        take_front(&mut from.to_vec(), &mut bytes);
        self.put(offset, bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failing_flushes > 0 {
            self.failing_flushes -= 1;
            return Err(io::Error::other("no"));
        }
        self.changes.push(Change::Flush);
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length, true)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _may_unmap: bool) -> io::Result<()> {
        assert!(!self.is_readonly);
        self.put(offset, vec![0; usize::try_from(length).unwrap()]);
        Ok(())
    }
}
