//! What each request does, and what is answered to those that make no sense.

mod guest;

use cloche_disk::request::Disk;
use guest::*;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn disk() -> Disk<Recorded> {
    let mut disk = Disk::new(Recorded::new(64), b"home");
    disk.negotiate(F_ALL);
    disk
}

#[test]
fn what_is_written_is_read_back() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let data: Vec<u8> = (0..1024_u32).map(|byte| byte as u8).collect();
    assert_eq!(guest.ask(&mut disk, OUT, 5, &data, 0), DONE);
    assert_eq!(guest.ask(&mut disk, IN, 5, &[], 1024), DONE);
    assert_eq!(guest.data(0, 1024), data);
    assert_eq!(guest.given_back(0), [(0, 1), (0, 1025)]);
}

#[test]
fn what_reaches_beyond_the_disk_fails_and_changes_nothing() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    for (sector, length) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (1 << 55, 512),
        (0, 511),
    ] {
        assert_eq!(
            guest.ask(&mut disk, OUT, sector, &vec![1; length], 0),
            FAILED
        );
        assert_eq!(guest.ask(&mut disk, IN, sector, &[], length as u32), FAILED);
    }
    assert!(disk.storage().changes.is_empty());
}

#[test]
fn the_name_is_told() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    assert_eq!(guest.ask(&mut disk, GET_ID, 0, &[], 20), DONE);
    assert_eq!(guest.data(0, 20), b"home\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(guest.ask(&mut disk, GET_ID, 0, &[], 3), DONE);
}

#[test]
fn a_flush_is_answered_after_the_storage_has_flushed() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    guest.ask(&mut disk, OUT, 0, &[1; 512], 0);
    assert!(matches!(disk.storage().changes[..], [Change::Put(..)]));
    assert_eq!(guest.ask(&mut disk, FLUSH, 0, &[], 0), DONE);
    assert!(matches!(
        disk.storage().changes[..],
        [Change::Put(..), Change::Flush]
    ));
}

#[test]
fn a_flush_of_nothing_does_not_reach_the_storage_and_one_after_any_change_does() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let page = range(0, 1, 0);
    // The first might be about what another process has written.
    let mut flushes = 1;
    guest.ask(&mut disk, FLUSH, 0, &[], 0);
    for (kind, data) in [
        (OUT, &[1; 512][..]),
        (DISCARD, &page),
        (WRITE_ZEROES, &page),
    ] {
        guest.ask(&mut disk, kind, 0, data, 0);
        flushes += 1;
        for _ in 0..3 {
            assert_eq!(guest.ask(&mut disk, FLUSH, 0, &[], 0), DONE);
            let changes = &disk.storage().changes;
            let seen = changes.iter().filter(|one| matches!(one, Change::Flush));
            assert_eq!(seen.count(), flushes);
        }
    }
}

#[test]
fn a_flush_after_half_a_write_reaches_the_storage() {
    let mut storage = Recorded::new(64);
    storage.failing_writes = 1;
    let (mut guest, mut disk) = (Guest::new(), Disk::new(storage, b""));
    disk.negotiate(F_ALL);
    guest.ask(&mut disk, FLUSH, 0, &[], 0);
    assert_eq!(guest.ask(&mut disk, OUT, 0, &[1; 512], 0), FAILED);
    assert_eq!(guest.ask(&mut disk, FLUSH, 0, &[], 0), DONE);
    assert!(matches!(
        disk.storage().changes[..],
        [Change::Flush, Change::Flush]
    ));
}

#[test]
fn without_flush_every_write_is_durable_before_it_is_answered() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    disk.negotiate(0);
    assert_eq!(guest.ask(&mut disk, OUT, 0, &[1; 512], 0), DONE);
    assert!(matches!(
        disk.storage().changes[..],
        [Change::Put(..), Change::Flush]
    ));
}

#[test]
fn after_a_failed_flush_none_succeeds() {
    let mut storage = Recorded::new(64);
    storage.failing_flushes = 1;
    let (mut guest, mut disk) = (Guest::new(), Disk::new(storage, b""));
    disk.negotiate(F_ALL);
    assert_eq!(guest.ask(&mut disk, FLUSH, 0, &[], 0), FAILED);
    assert_eq!(guest.ask(&mut disk, FLUSH, 0, &[], 0), FAILED);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    guest.ask(&mut disk, OUT, 0, &[1; 4096], 0);
    let two = [range(0, 1, 0), range(2, 1, 0)].concat();
    assert_eq!(guest.ask(&mut disk, DISCARD, 0, &two, 0), DONE);
    assert_eq!(
        guest.ask(&mut disk, WRITE_ZEROES, 0, &range(4, 2, 1), 0),
        DONE
    );
    let sums: Vec<u32> = disk.storage().bytes[..4096]
        .chunks(512)
        .map(|sector| sector.iter().map(|byte| u32::from(*byte)).sum())
        .collect();
    assert_eq!(sums, [0, 512, 0, 512, 0, 0, 512, 512]);
}

#[test]
fn ranges_that_make_no_sense_are_refused_whole() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let good = range(0, 1, 0);
    let many = vec![range(0, 1, 0); 17].concat();
    let bad: [(u8, Vec<u8>); 6] = [
        (FAILED, [good.clone(), range(64, 1, 0)].concat()),
        (FAILED, [good.clone(), range(0, u32::MAX, 0)].concat()),
        (FAILED, [good.clone(), range(u64::MAX, 1, 0)].concat()),
        (UNSUPPORTED, [good.clone(), range(0, 1, 2)].concat()),
        (FAILED, good[..15].to_vec()),
        (FAILED, many),
    ];
    for (status, ranges) in bad {
        assert_eq!(guest.ask(&mut disk, DISCARD, 0, &ranges, 0), status);
    }
    assert_eq!(guest.ask(&mut disk, DISCARD, 0, &[], 0), FAILED);
    assert!(disk.storage().changes.is_empty());
    disk.negotiate(F_FLUSH);
    assert_eq!(guest.ask(&mut disk, DISCARD, 0, &good, 0), UNSUPPORTED);
    assert_eq!(guest.ask(&mut disk, 99, 0, &good, 0), UNSUPPORTED);
}

#[test]
fn a_disk_that_must_not_change_does_not() {
    let mut storage = Recorded::new(64);
    storage.is_readonly = true;
    let (mut guest, mut disk) = (Guest::new(), Disk::new(storage, b""));
    disk.negotiate(F_ALL);
    assert_eq!(guest.ask(&mut disk, OUT, 0, &[1; 512], 0), FAILED);
    assert_eq!(guest.ask(&mut disk, DISCARD, 0, &range(0, 1, 0), 0), FAILED);
    assert_eq!(
        guest.ask(&mut disk, WRITE_ZEROES, 0, &range(0, 1, 0), 0),
        FAILED
    );
    assert_eq!(guest.ask(&mut disk, IN, 0, &[], 512), DONE);
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let at = Guest::room(0);
    let mut request = OUT.to_le_bytes().to_vec();
    request.extend([0; 4]);
    request.extend(3_u64.to_le_bytes());
    request.extend([7; 512]);
    guest.write(at, &request);
    guest.chain(
        0,
        &[
            (at, 5, 0),
            (at + 5, 300, 0),
            (at + 305, 223, 0),
            (at + 600, 1, WRITE),
        ],
    );
    // Read it back with the status in the same stretch as the data.
    guest.write(
        at + 0x1000,
        &[&IN.to_le_bytes()[..], &[0; 4], &3_u64.to_le_bytes()].concat(),
    );
    guest.chain(
        8,
        &[
            (at + 0x1000, 16, 0),
            (at + 0x2000, 100, WRITE),
            (at + 0x2064, 413, WRITE),
        ],
    );
    serve(&mut guest.started(), &mut disk).unwrap();
    assert_eq!(guest.read(at + 600, 1), [DONE]);
    assert_eq!(
        guest.read(at + 0x2000, 513),
        [&[7; 512][..], &[DONE]].concat()
    );
    assert_eq!(guest.given_back(0), [(0, 1), (8, 513)]);
}

#[test]
fn indirect_tables_are_followed_once() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let at = Guest::room(0);
    let table = Guest::room(4);
    guest.write(at, &[&IN.to_le_bytes()[..], &[0; 12]].concat());
    guest.write(at + 16, &[UNTOUCHED]);
    guest.descriptor(table, 0, (at, 16, 0), Some(1));
    guest.descriptor(table, 1, (at + 512, 512, WRITE), Some(2));
    guest.descriptor(table, 2, (at + 16, 1, WRITE), None);
    guest.chain(0, &[(table, 48, INDIRECT)]);
    serve(&mut guest.started(), &mut disk).unwrap();
    assert_eq!((guest.status(0), guest.used()), (DONE, 1));
    // A table in a table.
    guest.descriptor(table, 1, (table, 48, INDIRECT), Some(2));
    guest.chain(0, &[(table, 48, INDIRECT)]);
    guest.write(at + 16, &[UNTOUCHED]);
    serve(&mut guest.started(), &mut disk).unwrap();
    assert_eq!((guest.status(0), guest.used()), (UNTOUCHED, 2));
}

#[test]
fn what_is_malformed_is_told_wherever_there_is_room_for_a_status() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let at = Guest::room(0);
    let status = (at + 16, 1, WRITE);
    let end = MEMORY as u64;
    let malformed: [&[Part]; 6] = [
        &[(at, 15, 0), status],
        &[(at, 16, 0), (end - 1, 2, WRITE), status],
        &[(at, 16, 0), (u64::MAX, 512, WRITE), status],
        &[(at, 16, 0), (at, u32::MAX, WRITE), status],
        &[(at, 16, 0), (at + 512, 512, WRITE), (at, 16, 0), status],
        &[status],
    ];
    for parts in malformed {
        guest.write(
            at,
            &[&IN.to_le_bytes()[..], &[0; 12], &[UNTOUCHED]].concat(),
        );
        guest.chain(0, parts);
        serve(&mut guest.started(), &mut disk).unwrap();
        assert_eq!(guest.status(0), FAILED, "{parts:?}");
    }
    assert_eq!(guest.used(), 6);
}

#[test]
fn a_chain_without_an_end_is_given_back_untouched() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let at = Guest::room(0);
    guest.write(at + 16, &[UNTOUCHED]);
    for next in [0, 1, SIZE] {
        guest.descriptor(TABLE, 0, (at, 16, 0), Some(1));
        guest.descriptor(TABLE, 1, (at + 16, 1, WRITE), Some(next));
        guest.offer(0);
        serve(&mut guest.started(), &mut disk).unwrap();
    }
    assert_eq!((guest.status(0), guest.used()), (UNTOUCHED, 3));
    assert_eq!(guest.given_back(0), [(0, 0); 3]);
}

#[test]
fn a_jump_of_the_index_and_a_head_outside_the_table_break_the_ring() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    let mut vring = guest.started();
    guest.write(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
    assert!(serve(&mut vring, &mut disk).is_err());
    guest.offer(SIZE);
    assert!(serve(&mut vring, &mut disk).is_err());
    assert_eq!(guest.used(), 0);
}

#[test]
fn a_head_that_is_offered_twice_is_answered_twice() {
    let (mut guest, mut disk) = (Guest::new(), disk());
    guest.request(0, GET_ID, 0, &[], 20);
    guest.offer(0);
    serve(&mut guest.started(), &mut disk).unwrap();
    assert_eq!(guest.given_back(0), [(0, 21), (0, 21)]);
}
