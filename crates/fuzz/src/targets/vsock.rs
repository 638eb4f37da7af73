//! A guest's sockets: whatever the guest says in its packets, in whatever buffers, and whatever programs of the host and the
//! supervisor do, nothing panics, every packet for the guest is whole and from the host, no stream gets more than the guest has
//! said it has room for, and nobody hears anything that was not sent.
//!
//! The input is a row of decisions. Streams carry bytes that tell which is next, in each direction.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use cloche_device::{Device, Memory, Vring};
use cloche_vsock::device::{Sockets, RECEIVE, SEND};
use cloche_vsock::outside::Outside;
use cloche_vsock::packet::{op, Header, HEADER, HOST_CID, STREAM};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::choices::Choices;
use crate::guest::{event, NEXT, WRITE};

const MEMORY: usize = 256 << 10;
const SIZE: u16 = 16;
/// Of each queue.
const RINGS: u64 = 0x400;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x180;
/// Where what is received lies, a buffer for each descriptor; and what is sent.
const RECEIVED: u64 = 0x1_0000;
const BUFFER: u64 = 0x1000;
const SENT: u64 = 0x2_0000;
const CID: u64 = 3;
const DECISIONS: usize = 200;

/// Each run listens under another name: the last one's may not be free yet.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// A stream as the guest remembers it.
#[derive(Default)]
struct Known {
    /// What it has said: how much it keeps, how much it has taken.
    room: u32,
    taken: u32,
    /// Bytes that came for it.
    heard: u32,
    /// It said something that makes no sense: what comes then is not held to anything.
    is_liar: bool,
}

struct World {
    memory: Arc<Memory>,
    vrings: [Vring; 2],
    next: [u16; 2],
    seen: u16,
    sockets: Sockets,
    address: SocketAddr,
    supervisor: Option<UnixStream>,
    programs: Vec<UnixStream>,
    known: BTreeMap<(u32, u32), Known>,
}

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut world = World::new(choices.once_in(2));
    for _ in 0..DECISIONS {
        if choices.is_empty() {
            break;
        }
        match choices.byte() % 12 {
            0..=3 => world.say(&mut choices),
            4 => world.lend(&mut choices),
            5 | 6 => world.knock(&mut choices),
            7 => world.answer(&mut choices),
            8 => world.write(&mut choices),
            9 => world.read(&mut choices),
            10 => world.hang_up(&mut choices),
            // The guest starts anew, seldom.
            _ if choices.once_in(8) => world.sockets.reset(),
            _ => {}
        }
        world.turn();
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
    vring.start(event(0)).expect("no notes to read");
    vring
}

impl World {
    fn new(event_idx: bool) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let memory = Arc::new(memory);
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let name = format!("cloche-fuzz-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a free name");
        listener.set_nonblocking(true).expect("a socket");
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("a socket");
        let outside = Outside::new(listener, File::from(OwnedFd::from(theirs)));
        World {
            vrings: [queue(&memory, 0, event_idx), queue(&memory, 1, event_idx)],
            memory,
            next: [0; 2],
            seen: 0,
            sockets: Sockets::new(CID, outside.expect("they can be listened to")),
            address,
            supervisor: Some(ours),
            programs: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("it fits");
    }

    fn half(&self, address: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("it is there")
    }

    fn describe(&self, queue: usize, index: u16, place: (u64, u32), flags: u16, next: u16) {
        let at = queue as u64 * RINGS + 16 * u64::from(index % SIZE);
        self.put(at, &place.0.to_le_bytes());
        self.put(at + 8, &place.1.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let rings = queue as u64 * RINGS + AVAILABLE;
        let next = self.next[queue];
        self.put(rings + 4 + 2 * u64::from(next % SIZE), &head.to_le_bytes());
        self.next[queue] = next.wrapping_add(1);
        self.put(rings + 2, &self.next[queue].to_le_bytes());
    }

    /// How many offers of a queue have not come back.
    fn underway(&self, queue: usize) -> u16 {
        let used = self.half(queue as u64 * RINGS + USED + 2);
        self.next[queue].wrapping_sub(used)
    }

    /// The guest sends a packet, in one part or in two.
    fn say(&mut self, choices: &mut Choices<'_>) {
        if self.underway(SEND) >= SIZE {
            return;
        }
        let known: Vec<_> = self.known.keys().copied().collect();
        let ports = if known.is_empty() || choices.once_in(3) {
            (u32::from(choices.byte() % 4), u32::from(choices.byte() % 4))
        } else {
            known[choices.below(known.len())]
        };
        let length = choices.pick(&[0, 1, 100, 4096, 0x8000, 0x1_0000, 0x1_0001]);
        let header = Header {
            src_cid: if choices.once_in(16) {
                choices.u64()
            } else {
                CID
            },
            dst_cid: if choices.once_in(16) {
                choices.u64()
            } else {
                HOST_CID
            },
            src_port: ports.1,
            dst_port: ports.0,
            length: if choices.once_in(16) {
                choices.u32()
            } else {
                length
            },
            kind: if choices.once_in(16) {
                choices.u16()
            } else {
                STREAM
            },
            op: u16::from(choices.byte() % 9),
            flags: choices.byte().into(),
            room: choices.pick(&[0, 1, 1000, 1 << 16, 1 << 18, u32::MAX]),
            taken: choices.pick(&[0, 1, 100, u32::MAX, 1 << 31]),
        };
        self.note(ports, &header);
        self.put(SENT, &header.bytes());
        let cut = HEADER as u32 + choices.pick(&[0, 1, 100]);
        let all = HEADER as u32 + length;
        if choices.once_in(2) && cut < all {
            self.describe(SEND, 0, (SENT, cut), NEXT, 1);
            self.describe(SEND, 1, (SENT + u64::from(cut), all - cut), 0, 0);
        } else {
            let flags = if choices.once_in(16) {
                choices.u16() & 7
            } else {
                0
            };
            self.describe(SEND, 0, (SENT, all), flags, choices.byte().into());
        }
        self.offer(SEND, 0);
    }

    fn note(&mut self, ports: (u32, u32), header: &Header) {
        if header.op == op::REQUEST {
            self.known.entry(ports).or_default();
        }
        if let Some(known) = self.known.get_mut(&ports) {
            // A stream may end and another begin under the same ports; what is underway was sent when there was room; and what it
            // takes may be more than it got.
            known.is_liar |= header.room < known.room
                || matches!(header.op, op::REQUEST | op::RST | op::SHUTDOWN)
                || header.taken > known.heard;
            (known.room, known.taken) = (header.room, header.taken);
        }
    }

    /// The guest gives buffers.
    fn lend(&mut self, choices: &mut Choices<'_>) {
        for _ in 0..1 + choices.byte() % 8 {
            if self.underway(RECEIVE) >= SIZE {
                return;
            }
            let head = self.next[RECEIVE] % SIZE;
            let length = choices.pick(&[4096, 4096, 4096, 45, 44, 43, 0]);
            let place = RECEIVED + u64::from(head) * BUFFER;
            let flags = if choices.once_in(32) { 0 } else { WRITE };
            self.describe(RECEIVE, head, (place, length), flags, 0);
            self.offer(RECEIVE, head);
        }
    }

    fn knock(&mut self, choices: &mut Choices<'_>) {
        const LINES: [&[u8]; 6] = [
            b"CONNECT 1\n",
            b"CONNECT 2\r\nmore",
            b"CONNECT ",
            b"CONNECT 99999999999999999999999999\n",
            b"hello\n",
            b"",
        ];
        if self.programs.len() < 64 {
            let mut program = UnixStream::connect_addr(&self.address).expect("there is room");
            program.set_nonblocking(true).expect("a socket");
            program.write_all(choices.pick(&LINES)).expect("it fits");
            self.programs.push(program);
        }
    }

    fn answer(&mut self, choices: &mut Choices<'_>) {
        let Some(supervisor) = &mut self.supervisor else {
            return;
        };
        match choices.byte() % 8 {
            0 => supervisor.write_all(&[choices.byte()]).expect("it fits"),
            1 => self.supervisor = None,
            _ => {
                let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
                for end in [&ours, &theirs] {
                    end.set_nonblocking(true).expect("a socket");
                }
                let sent = supervisor.send_with_fd(&[1_u8][..], theirs.as_raw_fd());
                sent.expect("it fits");
                self.programs.push(ours);
            }
        }
    }

    fn any_program(&mut self, choices: &mut Choices<'_>) -> Option<&mut UnixStream> {
        let count = self.programs.len();
        (count > 0).then(|| &mut self.programs[choices.below(count)])
    }

    fn write(&mut self, choices: &mut Choices<'_>) {
        let length = choices.pick(&[1, 10, 5000, 1 << 16]);
        if let Some(program) = self.any_program(choices) {
            // It may have been hung up on, and it may be full.
            let _ = program.write(&vec![b'h'; length]);
        }
    }

    fn read(&mut self, choices: &mut Choices<'_>) {
        let mut room = vec![0; choices.pick(&[1, 100, 1 << 17])];
        if let Some(program) = self.any_program(choices) {
            match program.read(&mut room) {
                // The guest's memory is zeros, but for lines that say OK.
                Ok(count) => assert!(room[..count]
                    .iter()
                    .all(|byte| *byte == 0 || b"OK 0123456789\n".contains(byte))),
                Err(error) => assert!(matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionReset
                )),
            }
        }
    }

    fn hang_up(&mut self, choices: &mut Choices<'_>) {
        let count = self.programs.len();
        if count == 0 {
            return;
        }
        let place = choices.below(count);
        if choices.once_in(2) {
            let _ = self.programs[place].shutdown(Shutdown::Write);
        } else {
            self.programs.swap_remove(place);
        }
    }

    /// The loop of the device looks at both queues, and the guest at what it got.
    fn turn(&mut self) {
        for _ in 0..3 {
            for index in [RECEIVE, SEND] {
                let _ = self.sockets.process(index, &mut self.vrings[index]);
            }
        }
        if let Some(supervisor) = &mut self.supervisor {
            let mut question = [0; 4];
            supervisor.set_nonblocking(true).expect("a socket");
            match supervisor.read(&mut question) {
                Ok(4) => {}
                Ok(count) => panic!("{count} bytes are no question"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        while self.seen != self.half(USED + 2) {
            let at = USED + 4 + 8 * u64::from(self.seen % SIZE);
            let [head, length]: [u32; 2] = [0, 4].map(|offset| {
                self.memory
                    .read_obj(GuestAddress(at + offset))
                    .expect("it is there")
            });
            self.seen = self.seen.wrapping_add(1);
            self.hear(head, length as usize);
        }
    }

    fn hear(&mut self, head: u32, length: usize) {
        if length == 0 {
            return;
        }
        let mut packet = vec![0; length];
        let place = RECEIVED + u64::from(head) * BUFFER;
        self.memory
            .read_slice(&mut packet, GuestAddress(place))
            .expect("it is there");
        let (header, data) = packet.split_first_chunk().expect("a whole header");
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(header.length as usize, data.len());
        let ports = (header.src_port, header.dst_port);
        if header.op == op::REQUEST {
            self.known.insert(ports, Known::default());
        }
        if header.op == op::RW {
            assert!(data.iter().all(|byte| b"hmore".contains(byte)));
            if let Some(known) = self.known.get_mut(&ports) {
                known.heard = known.heard.wrapping_add(header.length);
                let underway = known.heard.wrapping_sub(known.taken);
                assert!(known.is_liar || underway <= known.room, "{underway}");
            }
        }
    }
}
