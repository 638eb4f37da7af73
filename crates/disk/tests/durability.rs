//! Whatever a loss of power leaves, what the guest was told to be durable is there.
//!
//! A guest writes, zeroes, discards and flushes. The storage keeps a log. A state after a crash is everything before the
//! last flush that reached the storage, and any part of what came later. In each such state every sector must hold
//! what it held at the last flush that the guest was told of, or something that was written there since.

mod guest;

use std::io;

use cloche_device::Slice;
use cloche_disk::request::Disk;
use cloche_disk::storage::Storage;
use guest::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

const SECTORS: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize),
    Zero(usize, usize),
    Discard(usize, usize),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..SECTORS).prop_flat_map(|at| (Just(at), 1..=(SECTORS - at)));
    let step = prop_oneof![
        4 => place.clone().prop_map(|(at, count)| Step::Write(at, count)),
        1 => place.clone().prop_map(|(at, count)| Step::Zero(at, count)),
        1 => place.prop_map(|(at, count)| Step::Discard(at, count)),
        2 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..24)
}

/// Whether the guest flushes, what it does, which of the later changes a crash keeps.
type Case = (bool, Vec<Step>, Vec<bool>);

/// A storage with a log, or around one.
trait Logged: Storage {
    fn changes(&self) -> &[Change];
}

impl Logged for Recorded {
    fn changes(&self) -> &[Change] {
        &self.changes
    }
}

/// The twin: its flush does nothing.
struct Deaf(Recorded);

impl Logged for Deaf {
    fn changes(&self) -> &[Change] {
        &self.0.changes
    }
}

impl Storage for Deaf {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn is_readonly(&self) -> bool {
        self.0.is_readonly()
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        self.0.read(offset, into)
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        self.0.write(offset, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.0.discard(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, length, may_unmap)
    }
}

/// Carries the steps out; returns for each sector everything it may hold after a crash, as its first byte.
fn play<S: Storage>(disk: &mut Disk<S>, has_flush: bool, steps: &[Step]) -> Vec<Vec<u8>> {
    let mut guest = Guest::new();
    disk.negotiate(if has_flush { F_ALL } else { F_ALL & !F_FLUSH });
    let mut allowed = vec![vec![0]; SECTORS];
    for (number, step) in (1_u8..).zip(steps) {
        let (kind, at, count, byte, out) = match *step {
            Step::Write(at, count) => (OUT, at, count, number, vec![number; count * SECTOR]),
            Step::Zero(at, count) => (
                WRITE_ZEROES,
                at,
                count,
                0,
                range(at as u64, count as u32, 1),
            ),
            Step::Discard(at, count) => (DISCARD, at, count, 0, range(at as u64, count as u32, 0)),
            Step::Flush => (FLUSH, 0, 0, 0, Vec::new()),
        };
        let sector = if kind == OUT { at as u64 } else { 0 };
        assert_eq!(guest.ask(disk, kind, sector, &out, 0), 0);
        for held in &mut allowed[at..at + count] {
            held.push(byte);
        }
        if kind == FLUSH || !has_flush {
            for held in &mut allowed {
                held.drain(..held.len() - 1);
            }
        }
    }
    allowed
}

/// A state after a crash: all before the last flush, and of the later changes those that `kept` says.
fn crash(changes: &[Change], kept: &[bool]) -> Vec<u8> {
    let mut bytes = vec![0; SECTORS * SECTOR];
    let last = changes
        .iter()
        .rposition(|change| matches!(change, Change::Flush))
        .unwrap_or(0);
    for (index, change) in changes.iter().enumerate() {
        let is_kept = index < last || kept[index % kept.len()];
        if let (true, Change::Put(at, put)) = (is_kept, change) {
            bytes[*at..*at + put.len()].copy_from_slice(put);
        }
    }
    bytes
}

fn check<S: Logged>(wrap: impl Fn(Recorded) -> S) -> Result<(), TestError<Case>> {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(400)
    };
    let kept = prop::collection::vec(any::<bool>(), 24);
    TestRunner::new(config).run(
        &(any::<bool>(), steps(), kept),
        |(has_flush, steps, kept)| {
            let mut disk = Disk::new(wrap(Recorded::new(SECTORS)), b"");
            let allowed = play(&mut disk, has_flush, &steps);
            let bytes = crash(disk.storage().changes(), &kept);
            for (sector, (found, allowed)) in bytes.chunks(SECTOR).zip(&allowed).enumerate() {
                prop_assert!(
                    allowed.contains(&found[0]),
                    "sector {sector} holds {}, not one of {allowed:?}",
                    found[0]
                );
            }
            Ok(())
        },
    )
}

#[test]
fn a_crash_leaves_what_was_flushed() {
    check(|storage| storage).unwrap();
}

#[test]
fn a_disk_whose_flush_does_nothing_is_found_out() {
    assert!(matches!(check(Deaf), Err(TestError::Fail(..))));
}
