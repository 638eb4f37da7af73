//! The front with a guest's driver and a peer, both honest and not: what is handed on, what is dropped, what waits.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cloche_device::{Device, Memory, Over, Progress, Turn, Vring};
use cloche_net::device::{Front, RECEIVE, SEND};
use cloche_net::frame::{Mac, Reason, Rules, DEFAULT_MTU, VIRTIO_HEADER};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 64;
const MEMORY: usize = 4 << 20;
/// Of each queue: descriptors, available ring, used ring.
const RINGS: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where a buffer for each descriptor of each queue is.
const BUFFERS: u64 = 0x10_0000;
const ROOM: u64 = 0x1000;
const WRITE: u16 = 2;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn event() -> File {
    // SAFETY: no pointers; the descriptor is new and nobody else's.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)) }
}

fn frame(to: [u8; 6], from: [u8; 6], length: usize, fill: u8) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.resize(length, fill);
    frame
}

fn spoken(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

struct Guest {
    memory: Arc<Memory>,
    vrings: [Vring; 2],
    offered: [u16; 2],
    front: Front<UnixStream>,
    peer: UnixStream,
}

impl Guest {
    fn new() -> Self {
        Guest::with(Some)
    }

    fn with(give: impl FnOnce(UnixStream) -> Option<UnixStream>) -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let vrings = [0, 1].map(|queue| {
            let mut vring = Vring::new(SIZE).unwrap();
            let rings = queue * RINGS;
            vring.set_memory(memory.clone());
            vring
                .set_places(rings, rings + AVAILABLE, rings + USED)
                .unwrap();
            vring.start(event()).unwrap();
            vring
        });
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let rules = Rules::new(Mac::parse("02:00:00:00:00:01").unwrap(), DEFAULT_MTU);
        let mut guest = Guest {
            memory,
            vrings,
            offered: [0; 2],
            front: Front::new(rules, give(ours)),
            peer,
        };
        guest.process(RECEIVE).unwrap();
        guest
    }

    fn process(&mut self, queue: usize) -> Result<Progress, cloche_device::Broken> {
        self.front.process(queue, &mut self.vrings[queue])
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn buffer(queue: usize, index: u16) -> u64 {
        BUFFERS + (queue as u64 * u64::from(SIZE) + u64::from(index)) * ROOM
    }

    /// Offers one buffer: what the device may read, or room that it may write.
    fn offer(&mut self, queue: usize, data: Option<&[u8]>, length: u32) {
        let index = self.offered[queue] % SIZE;
        let address = Self::buffer(queue, index);
        if let Some(data) = data {
            self.write(address, data);
        }
        let flags = if data.is_some() { 0 } else { WRITE };
        self.descriptor(queue, index, (address, length, flags, 0));
        self.put(queue, index);
    }

    fn descriptor(
        &self,
        queue: usize,
        index: u16,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let place = queue as u64 * RINGS + 16 * u64::from(index);
        self.write(place, &address.to_le_bytes());
        self.write(place + 8, &length.to_le_bytes());
        self.write(place + 12, &flags.to_le_bytes());
        self.write(place + 14, &next.to_le_bytes());
    }

    fn put(&mut self, queue: usize, head: u16) {
        let rings = queue as u64 * RINGS + AVAILABLE;
        let place = rings + 4 + 2 * u64::from(self.offered[queue] % SIZE);
        self.write(place, &head.to_le_bytes());
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.write(rings + 2, &self.offered[queue].to_le_bytes());
    }

    fn send(&mut self, frame: &[u8]) {
        let bytes = [&[0; VIRTIO_HEADER][..], frame].concat();
        self.offer(SEND, Some(&bytes), u32::try_from(bytes.len()).unwrap());
    }

    fn used(&self, queue: usize) -> u16 {
        let bytes = self.read(queue as u64 * RINGS + USED + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// What was written into the buffer that was given back as number `at`.
    fn received(&self, at: u16) -> Vec<u8> {
        let entry = self.read(
            RECEIVE as u64 * RINGS + USED + 4 + 8 * u64::from(at % SIZE),
            8,
        );
        let id = u16::from_le_bytes([entry[0], entry[1]]);
        let length = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        self.read(Self::buffer(RECEIVE, id), length as usize)
    }

    /// Everything that has come to the peer.
    fn heard(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = self.peer.read(&mut piece) {
            all.extend_from_slice(&piece[..count]);
        }
        all
    }

    fn watches(&self) -> (bool, bool) {
        let watch = self.front.watch().unwrap();
        (
            watch.read == Some(Turn::Queue(RECEIVE)),
            watch.write == Some(Turn::Queue(SEND)),
        )
    }
}

#[test]
fn what_a_guest_sends_comes_out_in_order() {
    let mut guest = Guest::new();
    let frames: Vec<_> = (0..10)
        .map(|fill| frame(OTHER, OWN, 60 + usize::from(fill), fill))
        .collect();
    for frame in &frames {
        guest.send(frame);
    }
    assert!(matches!(guest.process(SEND), Ok(Progress::Idle)));
    assert_eq!(guest.used(SEND), 10);
    let expected: Vec<u8> = frames.iter().flat_map(|frame| spoken(frame)).collect();
    assert_eq!(guest.heard(), expected);
}

#[test]
fn a_frame_may_be_spread_over_a_chain_in_any_way() {
    let sent = frame(OTHER, OWN, 100, 7);
    let bytes = [&[0; VIRTIO_HEADER][..], &sent].concat();
    for piece in [1, 5, 12, 13, 50, 112] {
        let mut guest = Guest::new();
        let address = Guest::buffer(SEND, 0);
        guest.write(address, &bytes);
        let pieces = bytes.len().div_ceil(piece).min(usize::from(SIZE));
        let piece = bytes.len().div_ceil(pieces);
        for (index, part) in bytes.chunks(piece).enumerate() {
            let is_last = (index + 1) * piece >= bytes.len();
            let at = (address + (index * piece) as u64, part.len() as u32);
            let index = index as u16;
            guest.descriptor(SEND, index, (at.0, at.1, u16::from(!is_last), index + 1));
        }
        guest.put(SEND, 0);
        guest.process(SEND).unwrap();
        assert_eq!(guest.heard(), spoken(&sent), "{piece}");
    }
}

#[test]
fn what_is_wrong_is_given_back_and_goes_nowhere() {
    let mut guest = Guest::new();
    let good = frame(OTHER, OWN, 60, 1);
    guest.send(&frame(OTHER, OTHER, 60, 1));
    guest.send(&frame(OTHER, OWN, 1519, 1));
    guest.send(&frame(OTHER, OWN, 13, 1));
    let asks = [&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &good].concat();
    guest.offer(SEND, Some(&asks), 72);
    guest.offer(SEND, Some(&[0; 11]), 11);
    // Outside of memory, and much too long.
    guest.descriptor(SEND, 5, (MEMORY as u64 - 20, 4096, 0, 0));
    guest.put(SEND, 5);
    guest.descriptor(SEND, 6, (0, u32::MAX, 0, 0));
    guest.put(SEND, 6);
    // Only room to write, and a chain that runs in a circle.
    guest.offer(SEND, None, 72);
    guest.descriptor(SEND, 8, (BUFFERS, 1, 1, 8));
    guest.put(SEND, 8);
    guest.send(&good);
    guest.process(SEND).unwrap();
    assert_eq!(guest.used(SEND), 10);
    assert_eq!(guest.heard(), spoken(&good));
    let dropped = guest.front.dropped();
    // What the circle makes up has no sender either.
    assert_eq!(dropped.of(Reason::Source), 2);
    assert_eq!(dropped.of(Reason::Offload), 1);
    assert!(dropped.of(Reason::Long) >= 2);
}

#[test]
fn a_peer_that_does_not_read_is_waited_for_and_nothing_is_lost() {
    let mut guest = Guest::new();
    let mut expected = Vec::new();
    let mut heard = Vec::new();
    let mut sent = 0_u32;
    // Until the socket and the buffer are full.
    while guest.used(SEND) == guest.offered[SEND] {
        let frame = frame(OTHER, OWN, 1514, sent as u8);
        expected.extend(spoken(&frame));
        guest.send(&frame);
        guest.process(SEND).unwrap();
        sent += 1;
        assert!(
            sent < 10_000,
            "a peer that does not read is written to without end"
        );
    }
    assert_eq!(guest.watches(), (true, true));
    // A guest that kicks on changes nothing.
    for _ in 0..100 {
        assert!(matches!(guest.process(SEND), Ok(Progress::Idle)));
    }
    assert_eq!(guest.used(SEND), guest.offered[SEND] - 1);
    while guest.watches().1 {
        heard.extend(guest.heard());
        guest.process(SEND).unwrap();
    }
    heard.extend(guest.heard());
    assert!(heard == expected);
    assert_eq!(guest.used(SEND), guest.offered[SEND]);
}

#[test]
fn what_comes_for_a_guest_gets_a_header() {
    let mut guest = Guest::new();
    let sent = frame(OWN, OTHER, 200, 9);
    guest.peer.write_all(&spoken(&sent)).unwrap();
    guest.offer(RECEIVE, None, 1530);
    guest.process(RECEIVE).unwrap();
    let received = guest.received(0);
    assert_eq!(
        received[..VIRTIO_HEADER],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(received[VIRTIO_HEADER..], sent);
}

#[test]
fn a_guest_without_buffers_is_waited_for_and_nothing_is_lost() {
    let mut guest = Guest::new();
    let mut expected = Vec::new();
    guest.process(RECEIVE).unwrap();
    assert_eq!(guest.watches(), (true, false));
    for number in 0..200 {
        let frame = frame(OWN, OTHER, 1000, number);
        guest.peer.set_nonblocking(true).unwrap();
        if guest.peer.write_all(&spoken(&frame)).is_err() {
            break;
        }
        expected.push(frame);
        guest.process(RECEIVE).unwrap();
        // It does not ask for more than it can give away.
        assert_eq!(guest.watches(), (false, false));
    }
    assert!(expected.len() > 60);
    let mut found = Vec::new();
    while found.len() < expected.len() {
        for _ in 0..SIZE.min(16) {
            guest.offer(RECEIVE, None, 1530);
        }
        guest.process(RECEIVE).unwrap();
        while found.len() < usize::from(guest.used(RECEIVE)) {
            found.push(guest.received(found.len() as u16)[VIRTIO_HEADER..].to_vec());
        }
    }
    assert!(found == expected);
}

#[test]
fn what_is_not_for_a_guest_costs_it_no_buffer() {
    let mut guest = Guest::new();
    for _ in 0..4 {
        guest.offer(RECEIVE, None, 1530);
    }
    let wanted = frame([0xFF; 6], OTHER, 60, 1);
    for frame in [
        frame(OTHER, OTHER, 60, 0),
        frame(OWN, OTHER, 1519, 0),
        wanted.clone(),
    ] {
        guest.peer.write_all(&spoken(&frame)).unwrap();
    }
    guest.process(RECEIVE).unwrap();
    assert_eq!(guest.used(RECEIVE), 1);
    assert_eq!(guest.received(0)[VIRTIO_HEADER..], wanted);
    assert_eq!(guest.front.dropped().of(Reason::Destination), 1);
    assert_eq!(guest.front.dropped().of(Reason::Long), 1);
}

#[test]
fn a_buffer_that_is_too_small_is_given_back_empty() {
    let mut guest = Guest::new();
    for length in [0, 11, 71] {
        guest.offer(RECEIVE, None, length);
        guest
            .peer
            .write_all(&spoken(&frame(OWN, OTHER, 60, 1)))
            .unwrap();
    }
    // One that may only be read, and one outside of memory.
    guest.offer(RECEIVE, Some(&[7; 100]), 100);
    guest.descriptor(RECEIVE, 4, (MEMORY as u64 - 20, 1530, WRITE, 0));
    guest.put(RECEIVE, 4);
    for _ in 0..2 {
        guest
            .peer
            .write_all(&spoken(&frame(OWN, OTHER, 60, 1)))
            .unwrap();
    }
    guest.process(RECEIVE).unwrap();
    assert_eq!(guest.used(RECEIVE), 5);
    assert!((0..5).all(|at| guest.received(at).is_empty()));
    assert_eq!(guest.read(Guest::buffer(RECEIVE, 3), 100), [7; 100]);
    assert_eq!(guest.front.dropped().of(Reason::Room), 5);
}

#[test]
fn a_stream_that_is_none_of_frames_ends_the_front() {
    let mut guest = Guest::new();
    guest.peer.write_all(&[0xFF; 64]).unwrap();
    guest.process(RECEIVE).unwrap();
    let over = guest.front.over();
    assert!(
        matches!(&over, Some(Over::PeerWrong(text)) if text.contains("4294967295")),
        "{over:?}"
    );
}

#[test]
fn the_end_of_the_peer_is_the_end_of_the_front() {
    let mut guest = Guest::new();
    guest
        .peer
        .write_all(&spoken(&frame(OWN, OTHER, 60, 1)))
        .unwrap();
    guest.peer = UnixStream::pair().unwrap().0;
    guest.offer(RECEIVE, None, 1530);
    guest.process(RECEIVE).unwrap();
    // What it has sent before is received.
    assert_eq!(guest.used(RECEIVE), 1);
    assert!(matches!(guest.front.over(), Some(Over::PeerGone)));
    let mut guest = Guest::new();
    guest.peer = UnixStream::pair().unwrap().0;
    guest.send(&frame(OTHER, OWN, 60, 1));
    guest.process(SEND).unwrap();
    assert!(matches!(guest.front.over(), Some(Over::PeerGone)));
}

#[test]
fn without_a_peer_everything_is_dropped_and_counted() {
    let mut guest = Guest::with(|_| None);
    for _ in 0..3 {
        for _ in 0..SIZE {
            guest.send(&frame(OTHER, OWN, 1514, 1));
        }
        while !matches!(guest.process(SEND), Ok(Progress::Idle)) {}
    }
    assert_eq!(guest.used(SEND), 3 * SIZE);
    assert_eq!(
        guest.front.dropped().of(Reason::NoPeer),
        3 * u64::from(SIZE)
    );
    assert!(guest.front.watch().is_none());
}

#[test]
fn a_guest_that_promises_what_is_not_there_breaks_its_queue_and_is_not_listened_to() {
    for queue in [SEND, RECEIVE] {
        let mut guest = Guest::new();
        guest
            .peer
            .write_all(&spoken(&frame(OWN, OTHER, 60, 1)))
            .unwrap();
        let index = queue as u64 * RINGS + AVAILABLE + 2;
        for jump in [SIZE + 1, 0x7FFF, 0xFFFF] {
            guest.write(index, &jump.to_le_bytes());
            assert!(guest.process(queue).is_err(), "{queue} {jump}");
            // Nothing is waited for on its behalf either: it would be found again and again.
            assert!(queue == SEND || guest.watches() == (false, false));
        }
    }
}

fn part() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let end = MEMORY as u64;
    let address = prop_oneof![
        4 => BUFFERS..BUFFERS + 0x4000,
        2 => 0..RINGS * 2,
        1 => end - 600..end + 600,
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        3 => prop::sample::select(vec![0, 1, 11, 12, 13, 26, 72, 1526, 1530, 4096, u32::MAX]),
        1 => any::<u32>(),
    ];
    (address, length, 0..8_u16, 0..SIZE + 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever stands in the rings, the front comes back, and the peer hears frames of the guest's own and nothing else.
    #[test]
    fn whatever_a_guest_writes_the_peer_hears_only_frames(
        parts in prop::collection::vec(part(), usize::from(SIZE)),
        heads in prop::collection::vec((0..2_usize, 0..SIZE + 2), 1..64),
        stream in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut guest = Guest::new();
        for (index, part) in parts.iter().enumerate() {
            guest.descriptor(index % 2, index as u16, *part);
        }
        guest.peer.write_all(&spoken(&frame(OWN, OTHER, 60, 1))).unwrap();
        guest.peer.write_all(&stream).unwrap();
        for (queue, head) in heads {
            guest.put(queue, head);
            let _ = guest.process(queue);
        }
        let mut heard = &guest.heard()[..];
        while let Some((length, rest)) = heard.split_first_chunk() {
            let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            prop_assert!((14..=1518).contains(&frame.len()));
            prop_assert_eq!(&frame[6..12], OWN);
            heard = rest;
        }
        prop_assert!(heard.is_empty());
    }
}
