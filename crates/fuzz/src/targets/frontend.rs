//! A device process's half of vhost-user against a frontend that lies: nothing panics, every message is answered or ends
//! the connection, what the frontend gave is given up with it, and memory stays bounded.
//!
//! The input is a row of decisions: which device, and messages of every kind, with bodies and descriptors that make sense or
//! do not. All of them lie in the socket before the device hears the first, and the queues' kicks have come before they are
//! listened to, so a run is the same every time. Two things are left out because they are meant to end or to stop a device's
//! process: memory that shrinks while it is used, and a state that never comes.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;

use cloche_device::{converse, Device};
use cloche_disk::request::Disk;
use cloche_fs::backend::Backend;
use cloche_fs::ids::Ids;
use cloche_fs::limits::RESERVED_FDS;
use cloche_fs::tree::TreeFs;
use cloche_rng::Entropy;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::choices::Choices;
use crate::guest::{event, lend_anything, Guest, AVAILABLE, MEMORY, TABLE, USED};
use crate::scratch::Scratch;
use crate::targets::disk::Checked;

const MESSAGES: usize = 48;
/// Where the frontend has its memory.
const USER: u64 = 0x7000_0000;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// What the frontend may send along.
struct Things {
    memory: File,
    notes: File,
    huge: File,
    event: File,
    kicked: File,
    other: Vec<File>,
}

impl Things {
    fn new(content: &[u8]) -> Self {
        let memory = anonymous(MEMORY as u64);
        (&memory).write_all(content).expect("it is as long");
        (&memory).rewind().expect("a place");
        let (one, other) = UnixStream::pair().expect("a pair of sockets");
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors, which are new and belong to nobody.
        let pipe = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            ends.map(|fd| File::from_raw_fd(fd))
        };
        // Nothing comes out of what has no other end.
        drop(other);
        let [from, _] = pipe;
        Things {
            memory,
            notes: anonymous(0x1_0000),
            huge: anonymous(1 << 40),
            event: event(0),
            kicked: event(1),
            other: vec![
                from,
                File::from(std::os::fd::OwnedFd::from(one)),
                File::open("/dev/null").expect("it is always there"),
                File::open("/").expect("it is always there"),
            ],
        }
    }

    fn any(&self, choices: &mut Choices<'_>) -> RawFd {
        match choices.byte() % 12 {
            0 | 1 => &self.memory,
            2 | 3 => &self.notes,
            4 => &self.huge,
            5 | 6 => &self.event,
            7 => &self.kicked,
            _ => &self.other[choices.below(self.other.len())],
        }
        .as_raw_fd()
    }
}

fn anonymous(size: u64) -> File {
    // SAFETY: a C string and no other pointers; the descriptor is new and belongs to nobody.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"shared".as_ptr(), 1)) };
    // As the process's limit allows; a hole takes no memory.
    let _ = file.set_len(size);
    file
}

struct Frontend {
    socket: UnixStream,
    sent: usize,
}

impl Frontend {
    fn say(&mut self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) {
        let size = u32::try_from(body.len()).expect("it is short");
        self.say_size(code, flags, size, body, fds);
    }

    fn say_size(&mut self, code: u32, flags: u32, size: u32, body: &[u8], fds: &[RawFd]) {
        let mut bytes = Vec::with_capacity(12 + body.len());
        for word in [code, flags, size] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        if self.sent < MESSAGES {
            self.socket
                .send_with_fds(&[&bytes[..]], fds)
                .expect("the socket has room for all of them");
        }
        self.sent += 1;
    }
}

fn device(kind: u8, scratch: &mut Option<Scratch>) -> Box<dyn Device> {
    match kind % 4 {
        0 => Box::new(Entropy::new()),
        1 => {
            let root = scratch.insert(Scratch::new("frontend")).served();
            let root = root.to_str().expect("made here");
            let files = TreeFs::new(root, Ids::SquashRoot, RESERVED_FDS + 32);
            Box::new(Backend::new(
                files.expect("it is there"),
                Some("tag".to_owned()),
            ))
        }
        kind => Box::new(Disk::new(
            Checked {
                is_readonly: kind == 3,
            },
            b"fuzz",
        )),
    }
}

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let mut scratch = None;
    let device = device(kind, &mut scratch);
    let guest = Guest::new(&[]);
    if kind & 0x80 != 0 {
        let count = usize::from(choices.byte()) * 2;
        lend_anything(&guest, &mut Choices::new(choices.bytes(count)));
    }
    let things = Things::new(&guest.read(0, MEMORY));
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket");
    let mut frontend = Frontend {
        socket: ours,
        sent: 0,
    };
    if kind & 0x40 == 0 {
        greet(&mut frontend, &things, device.as_ref());
    }
    while !choices.is_empty() && frontend.sent < MESSAGES {
        any_message(&mut frontend, &things, &mut choices);
    }
    let end = frontend.socket.shutdown(std::net::Shutdown::Write);
    end.expect("it is connected");
    // Whether it goes well is not said here.
    let _ = converse(device, theirs);
}

/// What an honest frontend begins with.
fn greet(frontend: &mut Frontend, things: &Things, device: &dyn Device) {
    const PROTOCOL: u64 = 1 << 30;
    const LOG_ALL: u64 = 1 << 26;
    let words =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let state = |index: u32, number: u32| [index.to_le_bytes(), number.to_le_bytes()].concat();
    frontend.say(1, VERSION, &[], &[]);
    let features = 1 << 32 | 1 << 29 | 1 << 28 | PROTOCOL | LOG_ALL | device.features();
    frontend.say(2, VERSION, &words(&[features]), &[]);
    frontend.say(15, VERSION, &[], &[]);
    let mut protocol = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 13 | 1 << 15;
    if device.config().is_some() {
        protocol |= 1 << 9;
    }
    if device.has_inflight() {
        protocol |= 1 << 12;
    }
    if device.has_state() {
        protocol |= 1 << 19;
    }
    frontend.say(16, VERSION, &words(&[protocol]), &[]);
    let table = words(&[1, 0, MEMORY as u64, USER, 0]);
    frontend.say(5, VERSION, &table, &[things.memory.as_raw_fd()]);
    frontend.say(8, VERSION, &state(0, 16), &[]);
    frontend.say(10, VERSION, &state(0, 0), &[]);
    let rings = words(&[0, USER + TABLE, USER + USED, USER + AVAILABLE, 0]);
    frontend.say(9, VERSION, &rings, &[]);
    frontend.say(13, VERSION, &words(&[0]), &[things.event.as_raw_fd()]);
    frontend.say(12, VERSION, &words(&[0]), &[things.kicked.as_raw_fd()]);
    frontend.say(18, VERSION, &state(0, 1), &[]);
}

fn any_message(frontend: &mut Frontend, things: &Things, choices: &mut Choices<'_>) {
    const CODES: [u32; 36] = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 24, 25, 31, 32,
        34, 36, 37, 38, 41, 42, 43, 5, 9, 12, 32,
    ];
    let byte = choices.byte();
    let code = match byte {
        0..=0xEF => CODES[usize::from(byte) % CODES.len()],
        _ => choices.u32() % 64,
    };
    let flags = match choices.byte() {
        0..=0x7F => VERSION | NEED_REPLY,
        0x80..=0xF7 => VERSION,
        _ => choices.u32(),
    };
    let mut fds = Vec::new();
    let mut body = Vec::new();
    match code {
        2 | 16 => {
            let value = choices.pick(&[
                0,
                1 << 32,
                1 << 32 | 1 << 30,
                1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26,
                0x8_B20B,
                u64::MAX,
            ]);
            body.extend(value.to_le_bytes());
        }
        5 | 37 | 38 => {
            let count = if code == 5 { choices.byte() % 5 } else { 1 };
            body.extend(u64::from(if code == 5 { count } else { 0 }).to_le_bytes());
            for _ in 0..count {
                any_region(&mut body, choices);
                if code != 38 {
                    fds.push(things.any(choices));
                }
            }
        }
        6 => {
            body.extend(
                choices
                    .pick(&[8, 0x1000, 0x1_0000, 1 << 40, u64::MAX])
                    .to_le_bytes(),
            );
            body.extend(choices.pick(&[0, 1, 0x1000, u64::MAX]).to_le_bytes());
            fds.push(things.any(choices));
        }
        8 | 10 | 11 | 18 => {
            body.extend(u32::from(choices.byte() % 4).to_le_bytes());
            let number = choices.pick(&[0, 1, 2, 8, 16, 17, 256, 1024, 0x8000, 0x1_0000, u32::MAX]);
            body.extend(number.to_le_bytes());
        }
        9 => {
            body.extend(u32::from(choices.byte() % 3).to_le_bytes());
            body.extend(u32::from(choices.byte() % 3).to_le_bytes());
            for honest in [TABLE, USED, AVAILABLE, 0] {
                let value = match choices.byte() {
                    0..=0x7F => USER + honest,
                    byte @ 0x80..=0xDF => USER + u64::from(byte) * 0x101,
                    _ => choices.number(),
                };
                body.extend(value.to_le_bytes());
            }
        }
        12..=14 => {
            let index = u64::from(choices.byte() % 4);
            let has_none = choices.once_in(8);
            body.extend((index | if has_none { 1 << 8 } else { 0 }).to_le_bytes());
            if !has_none {
                fds.push(match choices.byte() {
                    0..=0x7F => things.kicked.as_raw_fd(),
                    _ => things.any(choices),
                });
            }
        }
        24 | 25 => {
            let size = choices.pick(&[0, 1, 8, 36, 60, 256, 4096, u32::MAX]);
            body.extend(choices.pick(&[0_u32, 1, 60, 256, u32::MAX]).to_le_bytes());
            body.extend(size.to_le_bytes());
            body.extend(u32::from(choices.byte() % 2).to_le_bytes());
            body.extend(vec![0; size.min(300) as usize]);
        }
        31 | 32 => {
            body.extend(
                choices
                    .pick(&[0x400, 0x1000, 0x1_0000, 1 << 40, u64::MAX])
                    .to_le_bytes(),
            );
            body.extend(choices.pick(&[0, 0x40, 0x1000, u64::MAX]).to_le_bytes());
            body.extend(choices.pick(&[0_u16, 1, 2, u16::MAX]).to_le_bytes());
            body.extend(
                choices
                    .pick(&[0_u16, 1, 16, 128, 1024, 0x8000, u16::MAX])
                    .to_le_bytes(),
            );
            if code == 32 {
                let mut notes = vec![0; 16 + 16 * 32];
                let count = usize::from(choices.byte());
                let content = choices.bytes(count);
                notes[..content.len()].copy_from_slice(content);
                use std::os::unix::fs::FileExt;
                things.notes.write_all_at(&notes, 0).expect("it is as long");
                fds.push(match choices.byte() {
                    0..=0x9F => things.notes.as_raw_fd(),
                    _ => things.any(choices),
                });
            }
        }
        42 => {
            body.extend(u32::from(choices.byte() % 3).to_le_bytes());
            body.extend(u32::from(choices.once_in(8)).to_le_bytes());
            fds.push(match choices.byte() {
                0..=0x3F => things.memory.as_raw_fd(),
                0x40..=0x7F => things.notes.as_raw_fd(),
                _ => things.any(choices),
            });
        }
        _ => {
            if choices.once_in(4) {
                let length = usize::from(choices.byte());
                body.extend(choices.bytes(length));
            }
        }
    }
    if choices.once_in(32) {
        fds.extend((0..choices.byte() % 9).map(|_| things.any(choices)));
    }
    let size = match choices.byte() {
        0xFF => choices.u32(),
        0xFE => u32::try_from(body.len()).unwrap_or(0) ^ 1,
        _ => u32::try_from(body.len()).unwrap_or(0),
    };
    frontend.say_size(code, flags, size, &body, &fds);
}

fn any_region(body: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let size = MEMORY as u64;
    for (honest, others) in [
        (0, [0x1000, size, 1 << 32, u64::MAX - 0xFFF]),
        (size, [0, 0x1000, size + 1, 1 << 40]),
        (USER, [0, USER + 0x8000, USER + size, u64::MAX]),
        (0, [0x1000, 1, size, u64::MAX]),
    ] {
        let value = match choices.byte() {
            byte @ 0xA0..=0xFF => others[usize::from(byte) % others.len()],
            _ => honest,
        };
        body.extend(value.to_le_bytes());
    }
}
