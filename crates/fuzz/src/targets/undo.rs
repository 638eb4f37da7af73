//! An undo log that somebody hostile has left to the next process of its disk: it is refused, or gone on with as what it is.
//! Nothing panics, memory stays bounded by the disk, the log never grows beyond what it may, and what is appended to one that
//! was taken is read again.
//!
//! The first bytes are a row of decisions, what is asked of the disk; from [`ASKED`] on the input is the log.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

use cloche_device::Memory;
use cloche_disk::crc::crc32;
use cloche_disk::raw::RawFile;
use cloche_disk::storage::Storage;
use cloche_disk::undo::{Revertible, CLUSTER, HEADER, RECORD};
use vm_memory::{GuestAddress, GuestMemory};

use crate::choices::Choices;

/// Bytes of decisions before the log.
const ASKED: usize = 32;
const DISK: u64 = 8 * CLUSTER;
const MOST: u64 = 4 * CLUSTER;
const PAGE: u64 = 4096;

pub fn run(data: &[u8]) {
    let (asked, log) = data.split_at(data.len().min(ASKED));
    let mut choices = Choices::new(asked);
    let mut bytes = log.to_vec();
    // Now and then with right checksums, so that what stands between them is looked at.
    if choices.once_in(2) {
        mend(&mut bytes);
    }
    let (image, file) = (memory_file(), memory_file());
    image.set_len(DISK).expect("there is room");
    (&file).write_all(&bytes).expect("there is room");
    let Some(mut disk) = open(&image, &file) else {
        return;
    };
    let memory: Memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("memory");
    while !choices.is_empty() {
        let offset = u64::from(choices.byte()) % (DISK / PAGE) * PAGE;
        let slice = memory.get_slice(GuestAddress(0), PAGE as usize);
        let done = match choices.byte() % 3 {
            0 => disk.write(offset, &[slice.expect("it is there")]),
            1 => disk.discard(offset, PAGE),
            _ => disk.write_zeroes(offset, PAGE, choices.once_in(2)),
        };
        done.expect("the log is never in the way");
    }
    drop(disk);
    let length = file.metadata().expect("it is open").len();
    assert!(
        length <= MOST.max(bytes.len() as u64) + RECORD,
        "it has {length} bytes"
    );
    assert!(
        open(&image, &file).is_some(),
        "what was written is not read"
    );
}

/// Puts the checksums of a header and of what follows it right.
fn mend(log: &mut [u8]) {
    let (header, record) = (HEADER as usize, RECORD as usize);
    if log.len() < header {
        return;
    }
    let crc = crc32(0, &log[..header - 4]);
    log[header - 4..header].copy_from_slice(&crc.to_le_bytes());
    let mut chain = crc32(0, &log[48..64]);
    let mut at = header;
    while at + record <= log.len() {
        chain = crc32(crc32(0, &chain.to_le_bytes()), &log[at..at + 12]);
        log[at + 12..at + record].copy_from_slice(&chain.to_le_bytes());
        let pages = (log[at + 2].count_ones() + log[at + 3].count_ones()) as usize;
        at += record + pages * PAGE as usize;
    }
}

fn open(image: &File, log: &File) -> Option<Revertible> {
    let raw = RawFile::new(image.try_clone().expect("a descriptor"), false).expect("a file");
    Revertible::new(raw, log.try_clone().expect("a descriptor"), MOST).ok()
}

fn memory_file() -> File {
    // SAFETY: a C string and no other pointers; the descriptor is new and belongs to nobody.
    unsafe { File::from_raw_fd(libc::memfd_create(c"undo".as_ptr(), 1)) }
}
