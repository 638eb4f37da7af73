//! The disk's queue: whatever the guest writes into its memory, nothing panics and nothing beyond the disk is touched.
//!
//! The input is the guest's memory, cut off where the input ends, with the rings and the descriptors at its beginning.
#![no_main]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use cloche_device::{Memory, Slice, Vring, Written};
use cloche_disk::bytes::total_len;
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 64 << 10;
const SIZE: u16 = 16;
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x140;
const DISK: u64 = 1 << 20;

/// A disk without bytes, that only looks at what it is asked for.
struct Checked;

impl Checked {
    fn check(offset: u64, length: u64) -> io::Result<()> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= DISK));
        Ok(())
    }
}

impl Storage for Checked {
    fn size_bytes(&self) -> u64 {
        DISK
    }
    fn is_readonly(&self) -> bool {
        false
    }
    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        Self::check(offset, total_len(into))
    }
    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        Self::check(offset, total_len(from))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        Self::check(offset, length)
    }
    fn write_zeroes(&mut self, offset: u64, length: u64, _may_unmap: bool) -> io::Result<()> {
        Self::check(offset, length)
    }
}

fuzz_target!(|data: &[u8]| {
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let length = data.len().min(MEMORY);
    memory.write_slice(&data[..length], GuestAddress(0)).expect("it fits");
    let memory = Arc::new(memory);
    let mut disk = Disk::new(Checked, b"fuzz");
    disk.negotiate(1 << 9 | 1 << 13 | 1 << 14);
    let mut vring = Vring::new(SIZE).expect("a queue");
    vring.set_memory(memory.clone());
    vring.set_places(TABLE, AVAILABLE, USED).expect("places");
    vring.set_event_idx(data.first().is_some_and(|byte| byte & 1 != 0));
    // SAFETY: no pointers; the descriptor belongs to nobody yet.
    let kick = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) };
    vring.start(kick).expect("no notes to read");
    for _ in 0..4 {
        if vring.serve(|request| Written::Anywhere(disk.answer(request.lent()))).is_err() {
            return;
        }
    }
});
