//! Whatever a guest does to a disk, and whenever its process dies, the undo log gives back what was there before.

mod guest;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use cloche_disk::crc::crc32;
use cloche_disk::raw::RawFile;
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;
use cloche_disk::undo::{Header, Record, Revertible, CLUSTER, HEADER, PAGE, RECORD};
use guest::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

/// Five clusters, and a part of a page.
const DISK: u64 = 5 * CLUSTER + 3 * SECTOR as u64;
const SECTORS: u64 = DISK / SECTOR as u64;
const ROOM: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    /// The process dies; of the bytes it had appended last, so many are not there.
    Death(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..SECTORS).prop_flat_map(|at| (Just(at), 1..=(SECTORS - at).min(160)));
    let step = prop_oneof![
        4 => place.clone().prop_map(|(at, count)| Step::Write(at, count)),
        1 => (place.clone(), any::<bool>()).prop_map(|((at, count), unmap)| Step::Zero(at, count, unmap)),
        1 => place.prop_map(|(at, count)| Step::Discard(at, count)),
        1 => (0..3 * CLUSTER).prop_map(Step::Death),
    ];
    prop::collection::vec(step, 1..16)
}

fn memory_file() -> File {
    // SAFETY: a C string and no other pointers; the descriptor is new and belongs to nobody.
    unsafe { File::from_raw_fd(libc::memfd_create(c"undo".as_ptr(), 1)) }
}

/// An image with data here and there, and holes.
fn image(pages: &[u8]) -> File {
    let file = memory_file();
    file.set_len(DISK).unwrap();
    for (place, byte) in pages.iter().enumerate().filter(|(_, byte)| **byte > 0) {
        let at = (place * PAGE) as u64 % DISK;
        let length = (DISK - at).min(PAGE as u64) as usize;
        file.write_all_at(&vec![*byte; length], at).unwrap();
    }
    file
}

fn new_log(disk_bytes: u64) -> File {
    let mut header = vec![0; HEADER as usize];
    header[..8].copy_from_slice(b"clocheUL");
    header[8..12].copy_from_slice(&1_u32.to_le_bytes());
    header[12..16].copy_from_slice(&(CLUSTER as u32).to_le_bytes());
    header[16..24].copy_from_slice(&disk_bytes.to_le_bytes());
    header[48..64].copy_from_slice(b"0123456789abcdef");
    let crc = crc32(0, &header[..92]);
    header[92..].copy_from_slice(&crc.to_le_bytes());
    let mut file = memory_file();
    file.write_all(&header).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Gives back what the disk held; `None` when the log was given up.
fn take_back(log: &File, disk: &[u8]) -> Option<Vec<u8>> {
    let log = content(log);
    let header: &[u8; HEADER as usize] = log.first_chunk().unwrap();
    let mut chain = Header::decode(header).unwrap().chain;
    let mut disk = disk.to_vec();
    let mut at = HEADER as usize;
    while at < log.len() {
        let bytes: &[u8; RECORD as usize] = log[at..].first_chunk().unwrap();
        let (record, next) = Record::decode(bytes, chain).expect("a record");
        chain = next;
        at += RECORD as usize;
        let Record::Saved {
            cluster,
            mask,
            data,
        } = record
        else {
            return None;
        };
        let mut checksum = 0;
        for place in 0..16 {
            let page = if mask >> place & 1 == 1 {
                at += PAGE;
                &log[at - PAGE..at]
            } else {
                &[0; PAGE]
            };
            if mask >> place & 1 == 1 {
                checksum = crc32(checksum, page);
            }
            let offset = (u64::from(cluster) * CLUSTER) as usize + place * PAGE;
            let length = PAGE.min(disk.len().saturating_sub(offset));
            if length > 0 {
                disk[offset..offset + length].copy_from_slice(&page[..length]);
            }
        }
        assert_eq!(checksum, data);
    }
    Some(disk)
}

fn carry_out<S: Storage>(disk: &mut Disk<S>, number: u8, step: &Step) {
    let mut guest = Guest::new();
    disk.negotiate(F_ALL);
    let (kind, sector, out) = match *step {
        Step::Write(at, count) => {
            // As much as a request of this guest's has room for.
            let count = count.min(48);
            (OUT, at, vec![number | 0x80; count as usize * SECTOR])
        }
        Step::Zero(at, count, unmap) => {
            (WRITE_ZEROES, 0, range(at, count as u32, u32::from(unmap)))
        }
        Step::Discard(at, count) => (DISCARD, 0, range(at, count as u32, 0)),
        Step::Death(_) => return,
    };
    assert_eq!(guest.ask(disk, kind, sector, &out, 0), 0);
}

type Case = (Vec<u8>, Vec<Step>);

/// A process with its log, or a twin of one. It is given the files, and whether it is the first.
fn check<S: Storage>(open: impl Fn(&File, &File, bool) -> S) -> Result<(), TestError<Case>> {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(100)
    };
    let pages = prop::collection::vec(0..4_u8, 81);
    TestRunner::new(config).run(&(pages, steps()), |(pages, steps)| {
        let (image, log) = (image(&pages), new_log(DISK));
        let before = content(&image);
        let mut disk = Disk::new(open(&image, &log, true), b"");
        for (number, step) in (1_u8..).zip(&steps) {
            let length = log.metadata().unwrap().len();
            let held = content(&image);
            carry_out(&mut disk, number, step);
            if let Step::Death(lost) = step {
                // It dies in its next change: while it writes to the log, before it writes to the disk.
                carry_out(&mut disk, 0, &Step::Write(SECTORS - 130, 48));
                let grown = log.metadata().unwrap().len();
                log.set_len(grown.saturating_sub(*lost).max(length))
                    .unwrap();
                image.write_all_at(&held, 0).unwrap();
                disk = Disk::new(open(&image, &log, false), b"");
            }
        }
        prop_assert_eq!(take_back(&log, &content(&image)), Some(before));
        Ok(())
    })
}

fn raw(image: &File) -> RawFile {
    RawFile::new(image.try_clone().unwrap(), false).unwrap()
}

fn revertible(image: &File, log: &File) -> Revertible {
    Revertible::new(raw(image), log.try_clone().unwrap(), ROOM).unwrap()
}

#[test]
fn what_was_there_comes_back() {
    check(|image, log, _| revertible(image, log)).unwrap();
}

/// The twins: one keeps nothing; the other forgets, when it dies, what it has kept, and keeps what it changed itself.
#[test]
fn disks_that_keep_nothing_or_too_late_are_found_out() {
    let nothing = check(|image, _, _| raw(image));
    assert!(matches!(nothing, Err(TestError::Fail(..))));
    let forgetful = check(|image, log, _| {
        log.set_len(HEADER).unwrap();
        revertible(image, log)
    });
    assert!(matches!(forgetful, Err(TestError::Fail(..))));
}

fn write(disk: &mut Disk<Revertible>, sector: u64) {
    carry_out(disk, 1, &Step::Write(sector, 1));
}

/// What is behind the end that the disk had when its run began goes with the way back.
#[test]
fn a_disk_that_has_grown_since_goes_on_and_comes_back_as_it_was() {
    let (image, log) = (image(&[7; 81]), new_log(DISK));
    let before = content(&image);
    write(&mut Disk::new(revertible(&image, &log), b""), 0);
    image.set_len(2 * DISK).unwrap();
    let mut disk = Disk::new(revertible(&image, &log), b"");
    for sector in [0, 200, SECTORS - 1, SECTORS, SECTORS + 500] {
        write(&mut disk, sector);
    }
    let mut found = take_back(&log, &content(&image)).unwrap();
    found.truncate(before.len());
    assert_eq!(found, before);
    // One that has become smaller is another.
    image.set_len(DISK - 4096).unwrap();
    assert!(Revertible::new(raw(&image), log, ROOM).is_err());
}

#[test]
fn a_hole_costs_a_record_and_no_data() {
    let (image, log) = (image(&[]), new_log(DISK));
    let mut disk = Disk::new(revertible(&image, &log), b"");
    write(&mut disk, 0);
    assert_eq!(log.metadata().unwrap().len(), HEADER + RECORD);
    // A hole that is given up, or filled with zeros, does not change.
    carry_out(&mut disk, 1, &Step::Discard(128, 300));
    carry_out(&mut disk, 1, &Step::Zero(128, 300, false));
    assert_eq!(log.metadata().unwrap().len(), HEADER + RECORD);
}

#[test]
fn only_the_pages_that_hold_something_are_kept_and_only_once() {
    let (image, log) = (image(&[0, 0, 7]), new_log(DISK));
    let mut disk = Disk::new(revertible(&image, &log), b"");
    for sector in [0, 16, 0, 127] {
        write(&mut disk, sector);
    }
    let expected = HEADER + RECORD + PAGE as u64;
    assert_eq!(log.metadata().unwrap().len(), expected);
}

#[test]
fn a_log_without_room_is_given_up_and_the_guest_does_not_notice() {
    let (image, log) = (image(&[7; 81]), new_log(DISK));
    let most = HEADER + 2 * (RECORD + CLUSTER);
    let open = || Revertible::new(raw(&image), log.try_clone().unwrap(), most).unwrap();
    let mut disk = Disk::new(open(), b"");
    for cluster in 0..5 {
        write(&mut disk, cluster * CLUSTER / SECTOR as u64);
    }
    assert_eq!(take_back(&log, &content(&image)), None);
    assert_eq!(log.metadata().unwrap().len(), HEADER + RECORD);
    // Also for the next process.
    let mut disk = Disk::new(open(), b"");
    write(&mut disk, 2);
    assert_eq!(log.metadata().unwrap().len(), HEADER + RECORD);
    assert_eq!(content(&image)[4 * CLUSTER as usize], 0x81);
}

/// A log that can be read only: it can neither be written to nor given up.
#[test]
fn where_not_even_that_can_be_noted_the_disk_does_not_change() {
    let (image, log) = (image(&[7; 81]), new_log(DISK));
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&log));
    let readable = File::open(path).unwrap();
    let before = content(&image);
    let mut disk = Revertible::new(raw(&image), readable, ROOM).unwrap();
    for _ in 0..2 {
        assert!(disk.write_zeroes(0, 4096, false).is_err());
        assert_eq!(content(&image), before);
    }
}

fn refused(change: impl Fn(&mut Vec<u8>)) -> String {
    let (image, log) = (image(&[7; 81]), new_log(DISK));
    let mut disk = Disk::new(revertible(&image, &log), b"");
    write(&mut disk, 0);
    write(&mut disk, 128);
    let mut bytes = content(&log);
    change(&mut bytes);
    log.set_len(0).unwrap();
    log.write_all_at(&bytes, 0).unwrap();
    let error: io::Result<Revertible> = Revertible::new(raw(&image), log, ROOM);
    error.err().map_or(String::new(), |error| error.to_string())
}

fn seal(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
    let crc = crc32(0, &bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_log_that_is_wrong_is_refused() {
    let second = HEADER + RECORD + CLUSTER;
    assert_eq!(refused(|_| ()), "");
    assert_eq!(refused(Vec::clear), "it is no undo log");
    assert_eq!(refused(|log| log[20] ^= 1), "it is no undo log");
    assert_eq!(
        refused(|log| seal(log, 8, &[2])),
        "it is an undo log of version 2"
    );
    assert_eq!(
        refused(|log| seal(log, 16, &(1_u64 << 30).to_le_bytes())),
        "it is the undo log of a disk of 1073741824 bytes"
    );
    assert_eq!(
        refused(|log| seal(log, 16, &u64::MAX.to_le_bytes())),
        "the disk is too large for an undo log"
    );
    assert_eq!(
        refused(|log| seal(log, 64, &[1])),
        "it is the undo log of a run that has ended"
    );
    assert_eq!(
        refused(|log| seal(log, 48, &[1])),
        format!("there is no record at {HEADER}")
    );
    assert_eq!(
        refused(|log| log[second as usize + 4] ^= 1),
        format!("there is no record at {second}")
    );
    // The same cluster again, with a right chain.
    let twice = refused(|log| {
        let first: [u8; RECORD as usize] = log[HEADER as usize..].first_chunk().copied().unwrap();
        let header: [u8; HEADER as usize] = log.first_chunk().copied().unwrap();
        let chain = Header::decode(&header).unwrap().chain;
        let (record, chain) = Record::decode(&first, chain).unwrap();
        log.truncate(second as usize);
        log.extend(record.encode(chain).0);
        log.extend([7; CLUSTER as usize]);
    });
    assert_eq!(twice, format!("there is no record at {second}"));
}

#[test]
fn the_golden_bytes_are_what_both_sides_write_and_read() {
    let text = include_str!("../../../protocol/vectors/undo.json");
    let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
    let header = bytes_of(&vectors["header"]["hex"]);
    let header = Header::decode(header.first_chunk().unwrap()).unwrap();
    assert_eq!(vectors["header"]["disk"], header.disk_bytes);
    let mut chain = header.chain;
    for record in vectors["records"].as_array().unwrap() {
        let (found, next) =
            Record::decode(bytes_of(&record["hex"]).first_chunk().unwrap(), chain).unwrap();
        let mask = record["mask"].as_u64().unwrap();
        let page = bytes_of(&record["fill"]).repeat(PAGE);
        let expected = Record::Saved {
            cluster: record["cluster"].as_u64().unwrap() as u32,
            mask: mask as u16,
            data: crc32(0, &page.repeat(mask.count_ones() as usize)),
        };
        assert_eq!(found, expected);
        chain = next;
    }
    let given_up = bytes_of(&vectors["given_up"]);
    let (found, _) = Record::decode(given_up.first_chunk().unwrap(), header.chain).unwrap();
    assert_eq!(found, Record::GivenUp);
}

fn bytes_of(hex: &serde_json::Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap().as_bytes().chunks(2);
    hex.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
