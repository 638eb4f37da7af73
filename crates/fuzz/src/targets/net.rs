//! The network front: whatever the guest writes into its memory and the peer into the stream, nothing panics, every
//! frame that goes out is the guest's own and whole, and nothing is kept but two buffers.
//!
//! The input is the stream from the peer, behind its length in two bytes, and the guest's memory, cut off where the input
//! ends, with the rings and the descriptors of both queues at its beginning.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex};

use cloche_device::{Device, Memory, Vring};
use cloche_net::device::{Front, RECEIVE, SEND};
use cloche_net::frame::{Mac, Rules, DEFAULT_MTU};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 64 << 10;
const SIZE: u16 = 16;
/// Of each queue.
const RINGS: u64 = 0x200;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x140;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LONGEST: usize = 1518;

/// A peer that says what the input holds, in pieces of odd lengths, and takes what it hears in such pieces, too.
struct Peer {
    said: Vec<u8>,
    heard: Arc<Mutex<Vec<u8>>>,
    turn: usize,
}

impl Peer {
    /// How many bytes go at once; now and then none do.
    fn piece(&mut self) -> io::Result<usize> {
        self.turn += 1;
        match self.turn % 5 {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            step => Ok(step * 131),
        }
    }
}

impl Read for Peer {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let count = self.piece()?.min(room.len()).min(self.said.len());
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        room[..count].copy_from_slice(&self.said[..count]);
        self.said.drain(..count);
        Ok(count)
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.piece()?.min(bytes.len());
        self.heard
            .lock()
            .expect("one thread")
            .extend_from_slice(&bytes[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

fn queue(memory: &Arc<Memory>, index: u64, event_idx: bool) -> Vring {
    let mut vring = Vring::new(SIZE).expect("a queue");
    let rings = index * RINGS;
    vring.set_memory(memory.clone());
    vring
        .set_places(rings, rings + AVAILABLE, rings + USED)
        .expect("places");
    vring.set_event_idx(event_idx);
    // SAFETY: no pointers; the descriptor belongs to nobody yet.
    let kick = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) };
    vring.start(kick).expect("no notes to read");
    vring
}

pub fn run(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (said, image) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let image = &image[..image.len().min(MEMORY)];
    memory.write_slice(image, GuestAddress(0)).expect("it fits");
    let memory = Arc::new(memory);
    let heard = Arc::default();
    let peer = Peer {
        said: said.to_vec(),
        heard: Arc::clone(&heard),
        turn: 0,
    };
    let rules = Rules::new(
        Mac::parse("02:00:00:00:00:01").expect("an address"),
        DEFAULT_MTU,
    );
    let mut front = Front::new(rules, Some(peer));
    let event_idx = image.first().is_some_and(|byte| byte & 1 != 0);
    let mut vrings = [queue(&memory, 0, event_idx), queue(&memory, 1, event_idx)];
    for turn in 0..16 {
        let index = if turn % 2 == 0 { RECEIVE } else { SEND };
        let _ = front.process(index, &mut vrings[index]);
        if front.over().is_some() {
            break;
        }
    }
    let heard = heard.lock().expect("one thread");
    let mut left = &heard[..];
    while let Some((length, rest)) = left.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        assert!((14..=LONGEST).contains(&length));
        // The last one may have been cut off.
        if let Some(source) = rest.get(6..12) {
            assert_eq!(source, OWN);
        }
        left = rest.get(length..).unwrap_or_default();
    }
}
