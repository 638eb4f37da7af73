//! A disk process that dies at any moment: the next one does again what was not given back, and loses nothing.

mod guest;

use std::fs::File;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};

use cloche_device::{create_inflight, Inflight, Slice, Vring};
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;
use guest::*;
use proptest::prelude::*;
use vm_memory::FileOffset;

/// A storage that dies in its `left`th write, before or after carrying it out.
struct Mortal {
    storage: Recorded,
    left: u32,
    dies_after: bool,
}

impl Storage for Mortal {
    fn size_bytes(&self) -> u64 {
        self.storage.size_bytes()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        self.storage.read(offset, into)
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 && !self.dies_after {
            std::panic::resume_unwind(Box::new(()));
        }
        self.storage.write(offset, from)?;
        if self.left == 0 {
            std::panic::resume_unwind(Box::new(()));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.storage.flush()
    }

    fn discard(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&mut self, _offset: u64, _length: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }
}

struct Kept {
    notes: File,
    length: u64,
}

impl Kept {
    fn new() -> Self {
        let (notes, length) = create_inflight(1, SIZE).unwrap();
        Kept { notes, length }
    }

    fn started(&self, guest: &Guest) -> Vring {
        let mut vring = guest.vring();
        let file = FileOffset::new(self.notes.try_clone().unwrap(), 0);
        vring.set_inflight(Some(Inflight::map(file, self.length, 0, SIZE).unwrap()));
        vring.set_next(guest.used());
        vring.start(event()).unwrap();
        vring
    }
}

fn write_requests(guest: &mut Guest, round: u8, count: u16) {
    for index in 0..count {
        let data = [round + index as u8; 512];
        guest.request(index * 3, OUT, index.into(), &data, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn every_request_is_answered_once_and_carried_out(
        deaths in prop::collection::vec((1..9_u32, any::<bool>()), 1..6),
        count in 1..20_u16,
    ) {
        let (mut guest, kept) = (Guest::new(), Kept::new());
        write_requests(&mut guest, 1, count);
        let mut storage = Recorded::new(64);
        for (left, dies_after) in deaths {
            let mortal = Mortal { storage: storage.clone(), left, dies_after };
            let mut disk = Disk::new(mortal, b"");
            let mut vring = kept.started(&guest);
            // What is left in the storage when it dies is what its process had written.
            let _ = catch_unwind(AssertUnwindSafe(|| serve(&mut vring, &mut disk)));
            storage = disk.storage().storage.clone();
        }
        let mut disk = Disk::new(storage, b"");
        serve(&mut kept.started(&guest), &mut disk).unwrap();
        let mut heads: Vec<u32> = guest.given_back(0).iter().map(|(head, _)| *head).collect();
        heads.sort_unstable();
        let expected: Vec<u32> = (0..count).map(|index| u32::from(index) * 3).collect();
        prop_assert_eq!(heads, expected);
        for index in 0..count {
            prop_assert_eq!(guest.status(index * 3), 0);
            prop_assert_eq!(disk.storage().bytes[usize::from(index) * 512], 1 + index as u8);
        }
    }
}

/// Has a first process die in its first write; returns how many of the three requests a second one answers.
fn answered_after_a_death(has_notes: bool) -> u16 {
    let (mut guest, kept) = (Guest::new(), Kept::new());
    write_requests(&mut guest, 1, 3);
    let mortal = Mortal {
        storage: Recorded::new(64),
        left: 1,
        dies_after: false,
    };
    let mut first = kept.started(&guest);
    let mut dying = Disk::new(mortal, b"");
    let died = catch_unwind(AssertUnwindSafe(|| serve(&mut first, &mut dying)));
    assert!(died.is_err());
    let mut second = if has_notes {
        kept.started(&guest)
    } else {
        // Without notes there is only what was taken last.
        let mut vring = guest.vring();
        vring.set_next(guest.used() + 1);
        vring.start(event()).unwrap();
        vring
    };
    serve(&mut second, &mut Disk::new(Recorded::new(64), b"")).unwrap();
    guest.used()
}

#[test]
fn a_request_that_was_taken_is_done_again_because_it_was_noted() {
    assert_eq!(answered_after_a_death(true), 3);
    assert_eq!(answered_after_a_death(false), 2);
}
