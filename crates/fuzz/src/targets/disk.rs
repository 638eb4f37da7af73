//! The disk's queue: whatever the guest writes into its memory, nothing panics, every call ends, nothing beyond the disk
//! is asked of what keeps its bytes, and nothing is written that the guest did not lend for writing.
//!
//! The input is read as that of `rng`.

use std::io;

use cloche_device::{Device, Slice};
use cloche_disk::bytes::total_len;
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;

use crate::choices::Choices;
use crate::guest::{lend_anything, Guest, LENT, MEMORY};
use crate::targets::rng::serve;

const DISK: u64 = 1 << 20;

/// A disk of ones that looks at what it is asked for.
#[derive(Debug)]
pub struct Checked {
    pub is_readonly: bool,
}

impl Checked {
    fn check(offset: u64, length: u64) -> io::Result<()> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= DISK));
        Ok(())
    }

    fn check_change(&self, offset: u64, length: u64) -> io::Result<()> {
        assert!(!self.is_readonly);
        Self::check(offset, length)
    }
}

impl Storage for Checked {
    fn size_bytes(&self) -> u64 {
        DISK
    }
    fn is_readonly(&self) -> bool {
        self.is_readonly
    }
    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        for slice in into {
            slice.copy_from(&vec![1_u8; slice.len()]);
        }
        Self::check(offset, total_len(into))
    }
    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        self.check_change(offset, total_len(from))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.check_change(offset, length)
    }
    fn write_zeroes(&mut self, offset: u64, length: u64, _may_unmap: bool) -> io::Result<()> {
        self.check_change(offset, length)
    }
}

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mode = choices.byte();
    let storage = Checked {
        is_readonly: mode & 4 != 0,
    };
    let mut disk = Disk::new(storage, b"fuzz");
    disk.accept(if mode & 8 == 0 { disk.offered() } else { 0 });
    if mode & 1 == 0 {
        let mut guest = Guest::new(choices.rest());
        guest.start(mode & 2 != 0);
        serve(&mut disk, &mut guest);
        return;
    }
    let mut guest = Guest::new(&[]);
    let lent = lend_anything(&guest, &mut choices);
    guest.start(mode & 2 != 0);
    let before = guest.read(LENT, MEMORY - LENT as usize);
    serve(&mut disk, &mut guest);
    guest.check_untouched(LENT, &before, &lent);
}
