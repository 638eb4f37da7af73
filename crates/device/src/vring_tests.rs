use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::atomic::Ordering;

use vm_memory::Bytes;

use super::*;

const SIZE: u16 = 16;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const MEMORY: usize = 0x1_0000;

/// An event descriptor.
fn event() -> File {
    // SAFETY: no pointers; the descriptor is new and nobody else's.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)) }
}

struct Guest {
    vring: Vring,
    memory: Arc<Memory>,
}

impl Guest {
    fn new() -> Self {
        Guest::with_rings(TABLE, AVAILABLE, USED)
    }

    fn with_rings(table: u64, available: u64, used: u64) -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let mut vring = Vring::new(SIZE).unwrap();
        vring.set_memory(memory.clone());
        vring.set_size(SIZE.into()).unwrap();
        vring.set_places(table, available, used).unwrap();
        vring.set_enabled(true);
        vring.set_call(Some(event()));
        vring.start(event()).unwrap();
        Guest { vring, memory }
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// A buffer of 8 bytes that may be written, as descriptor `index`.
    fn put_buffer(&self, index: u16) {
        let place = TABLE + 16 * u64::from(index);
        self.put(place, 0x8000_u64);
        self.put(place + 8, 8_u32);
        self.put(place + 12, 2_u16);
    }

    fn offer(&self, at: u16, head: u16) {
        self.put(AVAILABLE + 4 + 2 * u64::from(at % SIZE), head);
        self.put(AVAILABLE + 2, at.wrapping_add(1));
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn serve(&mut self) -> (usize, Result<Progress, Broken>) {
        let mut answered = 0;
        let progress = self.vring.serve(|request| {
            answered += 1;
            Written::Front(u32::try_from(request.into_chain().unwrap().count()).unwrap())
        });
        (answered, progress)
    }
}

#[test]
fn a_queue_is_emptied_and_then_idle() {
    let mut guest = Guest::new();
    assert!(matches!(guest.serve(), (0, Ok(Progress::Idle))));
    for head in 0..3 {
        guest.put_buffer(head);
        guest.offer(head, head);
    }
    assert!(matches!(guest.serve(), (3, Ok(Progress::Idle))));
    assert_eq!(guest.used(), 3);
    assert!(matches!(guest.serve(), (0, Ok(Progress::Idle))));
}

#[test]
fn a_guest_that_never_stops_gets_one_turn_at_a_time() {
    let mut guest = Guest::new();
    guest.put_buffer(0);
    let memory = guest.memory.clone();
    let mut next = 0_u16;
    let mut answered = 0;
    for _ in 0..1000 {
        for _ in 0..SIZE {
            guest.offer(next, 0);
            next = next.wrapping_add(1);
        }
        // While each is answered the guest offers one more.
        let progress = guest.vring.serve(|_| {
            answered += 1;
            let ahead = next.wrapping_add(1);
            memory
                .write_obj(ahead, GuestAddress(AVAILABLE + 2))
                .unwrap();
            Written::Front(0)
        });
        assert!(matches!(progress, Ok(Progress::More)));
        memory.write_obj(next, GuestAddress(AVAILABLE + 2)).unwrap();
    }
    assert_eq!(answered, 1000 * usize::from(SIZE));
}

#[test]
fn indexes_that_jump_are_refused_and_forgotten() {
    let mut guest = Guest::new();
    guest.put_buffer(0);
    for jump in [SIZE + 1, 0x7FFF, 0x8000, 0xFFFF] {
        guest.put(AVAILABLE + 2, jump);
        assert!(matches!(guest.serve(), (0, Err(Broken::Ring(_)))), "{jump}");
    }
    guest.offer(0, 0);
    assert!(matches!(guest.serve(), (1, Ok(Progress::Idle))));
}

#[test]
fn a_head_may_be_used_again_and_one_that_is_not_there_breaks_the_queue() {
    let mut guest = Guest::new();
    guest.put_buffer(0);
    for at in 0..SIZE {
        guest.offer(at, 0);
    }
    assert!(matches!(guest.serve(), (16, Ok(Progress::Idle))));
    for head in [SIZE, 0x8000, 0xFFFF] {
        let mut guest = Guest::new();
        guest.offer(0, head);
        assert!(guest.serve().1.is_err(), "{head}");
        guest.put_buffer(1);
        guest.offer(1, 1);
        assert!(matches!(guest.serve(), (1, Ok(Progress::Idle))), "{head}");
    }
}

/// Whether a guest that keeps to the rules kicks when it puts something in at this index.
fn kicks(guest: &Guest, at: u16, has_event_idx: bool) -> bool {
    if has_event_idx {
        let event = USED + 4 + 8 * u64::from(SIZE);
        let wanted: u16 = guest.memory.read_obj(GuestAddress(event)).unwrap();
        wanted == at
    } else {
        let flags: u16 = guest.memory.read_obj(GuestAddress(USED)).unwrap();
        flags == 0
    }
}

#[test]
fn a_queue_that_was_broken_is_kicked_for_the_next_request() {
    for has_event_idx in [false, true] {
        let mut guest = Guest::new();
        guest.vring.set_event_idx(has_event_idx);
        for head in 0..4 {
            guest.put_buffer(head);
            guest.offer(head, if head == 1 { SIZE } else { head });
        }
        assert!(matches!(guest.serve(), (1, Err(Broken::Head(SIZE)))));
        assert!(!kicks(&guest, 4, has_event_idx), "or this shows nothing");
        assert!(!guest.vring.want_another().unwrap());
        assert!(kicks(&guest, 4, has_event_idx), "{has_event_idx}");
        guest.put_buffer(4);
        guest.offer(4, 4);
        assert!(matches!(guest.serve(), (3, Ok(Progress::Idle))));
        assert!(kicks(&guest, 5, has_event_idx));
    }
}

#[test]
fn a_broken_queue_without_rings_in_memory_is_asked_for_nothing() {
    let end = MEMORY as u64 - 16;
    let mut guest = Guest::with_rings(TABLE, AVAILABLE, end);
    guest.vring.set_event_idx(true);
    assert!(guest.vring.want_another().is_err());
    let mut guest = Guest::with_rings(TABLE, MEMORY as u64, USED);
    assert!(guest.vring.want_another().is_err());
}

#[test]
fn rings_that_end_outside_of_memory_break_the_queue() {
    let end = MEMORY as u64 - 16;
    for (table, available, used) in [
        (end, AVAILABLE, USED),
        (TABLE, end, USED),
        (TABLE, AVAILABLE, end),
    ] {
        let mut guest = Guest::with_rings(table, available, used);
        guest.put(available + 2, SIZE);
        // Whatever it finds there, it comes back, and the queue does not grow.
        let (answered, _) = guest.serve();
        assert!(answered <= usize::from(SIZE));
    }
}

#[test]
fn sizes_and_kicks_are_checked() {
    let mut vring = Vring::new(SIZE).unwrap();
    for size in [0, 3, 32, 0x1_0000, u32::MAX] {
        assert!(vring.set_size(size).is_err(), "{size}");
    }
    assert!(vring.awaited().is_none());
    vring.start(event()).unwrap();
    assert!(vring.awaited().is_none());
    vring.set_enabled(true);
    assert!(vring.awaited().is_some());
    // Nobody has kicked: not an error, and no wait.
    vring.take_kick().unwrap();
    vring.stop();
    assert!(vring.awaited().is_none());
    vring.take_kick().unwrap();
}

/// A kick without a request is ordinary: the request it was for was answered with the one before. The next one may arrive
/// between the look at the empty queue and the wish to be told.
#[test]
fn a_request_that_comes_while_the_queue_is_found_empty_is_answered() {
    const REQUESTS: u16 = 50_000;
    let mut guest = Guest::new();
    guest.put_buffer(0);
    let memory = guest.memory.clone();
    let driver = std::thread::spawn(move || {
        for at in 0..REQUESTS {
            let slot = AVAILABLE + 4 + 2 * u64::from(at % SIZE);
            memory.write_obj(0_u16, GuestAddress(slot)).unwrap();
            let next = at.wrapping_add(1);
            let index = GuestAddress(AVAILABLE + 2);
            memory.store(next, index, Ordering::SeqCst).unwrap();
            while memory
                .load::<u16>(GuestAddress(USED + 2), Ordering::SeqCst)
                .unwrap()
                != next
            {
                std::hint::spin_loop();
            }
        }
    });
    let mut answered = 0;
    while answered < usize::from(REQUESTS) {
        let (count, progress) = guest.serve();
        answered += count;
        assert!(progress.is_ok(), "after {answered}: {progress:?}");
    }
    driver.join().unwrap();
}
