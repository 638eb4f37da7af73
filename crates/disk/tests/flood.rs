//! Nothing a guest writes into its rings panics the disk, reaches beyond the storage, or costs more than a bounded
//! amount of memory.

mod guest;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cloche_disk::request::Disk;
use guest::*;
use proptest::prelude::*;

/// Counts what this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(isize::try_from(layout.size()).unwrap_or(0));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-isize::try_from(layout.size()).unwrap_or(0));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn address() -> impl Strategy<Value = u64> {
    let end = MEMORY as u64;
    prop_oneof![
        4 => BUFFERS..BUFFERS + 0x2000,
        2 => TABLE..USED + 0x1000,
        1 => end - 600..end + 600,
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => prop::sample::select(vec![0, 1, 15, 16, 17, 512, 513, 1024, 4096, 1 << 20, u32::MAX]),
        2 => 0..2048_u32,
        1 => (0..64_u32).prop_map(|count| count * 16),
        1 => any::<u32>(),
    ]
}

type Raw = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Raw> {
    let flags = prop_oneof![4 => 0..4_u16, 2 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![6 => 0..SIZE, 1 => any::<u16>()];
    (address(), length(), flags, next)
}

fn put(guest: &Guest, table: u64, index: u16, raw: Raw) {
    let place = table + 16 * u64::from(index);
    guest.write(place, &raw.0.to_le_bytes());
    guest.write(place + 8, &raw.1.to_le_bytes());
    guest.write(place + 12, &raw.2.to_le_bytes());
    guest.write(place + 14, &raw.3.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn rings_full_of_nonsense_are_survived(
        table in prop::collection::vec(descriptor(), usize::from(SIZE)),
        kinds in prop::collection::vec((0..16_u32, 0..80_u64), 16),
        heads in prop::collection::vec(prop_oneof![9 => 0..SIZE, 1 => any::<u16>()], 1..80),
        jump in prop_oneof![4 => Just(0_u16), 1 => any::<u16>()],
        is_readonly: bool,
    ) {
        let mut guest = Guest::new();
        for (at, (kind, sector)) in (BUFFERS..).step_by(512).zip(&kinds) {
            guest.write(at, &kind.to_le_bytes());
            guest.write(at + 8, &sector.to_le_bytes());
        }
        for (index, raw) in (0..).zip(&table) {
            put(&guest, TABLE, index, *raw);
        }
        let mut storage = Recorded::new(64);
        storage.is_readonly = is_readonly;
        let mut disk = Disk::new(storage, b"name");
        disk.negotiate(F_ALL);
        let mut vring = guest.started();
        for head in heads {
            guest.offer(head);
            let _ = serve(&mut vring, &mut disk);
        }
        guest.write(AVAILABLE + 2, &guest.offered.wrapping_add(jump).to_le_bytes());
        for _ in 0..3 {
            let _ = serve(&mut vring, &mut disk);
        }
        prop_assert_eq!(disk.storage().bytes.len(), 64 * SECTOR);
    }
}

#[test]
fn the_longest_chains_cost_no_more_than_two_mebibytes() {
    let mut guest = Guest::new();
    let table = Guest::room(8);
    let entries = u16::MAX;
    for index in 0..entries {
        // Long, overlapping, and without an end.
        put(
            &guest,
            table,
            index,
            (Guest::room(0), 1 << 10, 3, (index + 1) % entries),
        );
    }
    let mut disk = Disk::new(Recorded::new(64), b"");
    let mut vring = guest.started();
    let before = HELD.get();
    PEAK.set(before);
    for _ in 0..200 {
        guest.chain(0, &[(table, u32::from(entries) * 16, INDIRECT)]);
        serve(&mut vring, &mut disk).unwrap();
    }
    assert_eq!(guest.used(), 200);
    let cost = PEAK.get() - before;
    assert!(cost < 2 << 20, "{cost} bytes");
}
