//! The file server's requests, on a tree that does not change and on a share, as a hostile guest puts them into the queue.
//!
//! Nothing panics and every request ends. Nothing outside of the served directory is opened or changed, and nothing of it
//! is told: beside that directory lies a secret, and links inside it lead there. What is open for the guest stays within
//! the limit that the server was given; a tree that does not change is not changed, and neither is a read-only share. A
//! reply lies where the guest lent memory for it, and says its own length.
//!
//! The input is a row of decisions: requests of every kind, each with fields that make sense or do not, in descriptors cut
//! anywhere.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Seek, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cloche_device::{Device, StateTransfer};
use cloche_fs::backend::Backend;
use cloche_fs::ids::Ids;
use cloche_fs::limits::RESERVED_FDS;
use cloche_fs::share::{ShareConfig, ShareFs};
use cloche_fs::tree::TreeFs;

use crate::choices::Choices;
use crate::guest::{Guest, Lending, LENT, MEMORY, NEXT, TABLE, USED, WRITE};
use crate::process::open_fds;

const REQUESTS: usize = 64;
/// Descriptors that a guest may have.
const GUEST_FDS: u64 = 32;
const HEADER: usize = 40;
const REPLY_HEADER: u32 = 16;
/// Where the requests and the replies are.
const REQUEST: u64 = LENT;
const REPLY: u64 = 0x8000;

/// A directory that is served, and what lies beside it.
pub struct Scratch {
    path: PathBuf,
    /// Another one every time, so that no input can have it.
    secret: Vec<u8>,
}

impl Scratch {
    pub fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("cloche-fuzz-{name}-{}", std::process::id()));
        let mut secret = vec![0; 16];
        // SAFETY: the kernel writes at most as many bytes as there is room for.
        let got = unsafe { libc::getrandom(secret.as_mut_ptr().cast(), secret.len(), 0) };
        assert_eq!(usize::try_from(got), Ok(secret.len()));
        let scratch = Scratch { path, secret };
        scratch.remove();
        let served = scratch.served();
        fs::create_dir_all(served.join("dir/inner")).expect("a directory");
        fs::write(served.join("file"), b"text").expect("a file");
        fs::write(served.join("dir/other"), vec![b'x'; 5000]).expect("a file");
        fs::write(scratch.path.join("secret"), &scratch.secret).expect("a file");
        symlink("../secret", served.join("link")).expect("a link");
        symlink(scratch.path.join("secret"), served.join("whole")).expect("a link");
        symlink("..", served.join("up")).expect("a link");
        scratch
    }

    pub fn served(&self) -> PathBuf {
        self.path.join("served")
    }

    /// Everything beside what is served, as far as anybody could change it.
    fn beside(&self) -> BTreeMap<PathBuf, (u32, u64, u32, i64, i64)> {
        let listing = fs::read_dir(&self.path).expect("it is there");
        listing
            .map(|entry| {
                let path = entry.expect("it is readable").path();
                let found = fs::symlink_metadata(&path).expect("it is there");
                let changed = if path == self.served() {
                    (0, 0, 0, 0, 0)
                } else {
                    let (sec, nsec) = (found.ctime(), found.ctime_nsec());
                    (found.mode(), found.nlink(), found.uid(), sec, nsec)
                };
                (path, changed)
            })
            .collect()
    }

    /// Everything that is served.
    fn inside(&self) -> Vec<(PathBuf, u32, u64, i64, i64)> {
        let mut found = Vec::new();
        let mut left = vec![self.served()];
        while let Some(path) = left.pop() {
            let data = fs::symlink_metadata(&path).expect("it is there");
            if data.is_dir() {
                let listing = fs::read_dir(&path).expect("it is readable");
                left.extend(listing.map(|entry| entry.expect("it is readable").path()));
            }
            let (sec, nsec) = (data.ctime(), data.ctime_nsec());
            found.push((path, data.mode(), data.size(), sec, nsec));
        }
        found.sort();
        found
    }

    fn remove(&self) {
        fn open_up(path: &Path) {
            let is_dir = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
            if !is_dir {
                return;
            }
            let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                open_up(&entry.path());
            }
        }
        open_up(&self.path);
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

pub fn run_tree(data: &[u8]) {
    let mut choices = Choices::new(data);
    let scratch = Scratch::new("tree");
    let root = scratch.served();
    let files = TreeFs::new(utf8(&root), Ids::SquashRoot, RESERVED_FDS + GUEST_FDS);
    let before = scratch.inside();
    converse(
        Backend::new(files.expect("it is there"), None),
        &scratch,
        &mut choices,
    );
    assert_eq!(scratch.inside(), before, "what must not change was changed");
}

pub fn run_share(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mode = choices.byte();
    let scratch = Scratch::new("share");
    // SAFETY: no pointers.
    let is_root = unsafe { libc::geteuid() } == 0;
    let files = ShareFs::new(&ShareConfig {
        root: utf8(&scratch.served()).to_owned(),
        ids: match mode & 2 {
            2 if is_root => Ids::Host,
            _ => Ids::Caller {
                uid: 1000,
                gid: 1000,
            },
        },
        fd_limit: RESERVED_FDS + GUEST_FDS,
        is_readonly: mode & 1 != 0,
    });
    let before = scratch.inside();
    converse(
        Backend::new(files.expect("it is there"), None),
        &scratch,
        &mut choices,
    );
    if mode & 1 != 0 {
        assert_eq!(scratch.inside(), before, "a read-only share was changed");
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("made here")
}

fn converse(mut device: impl Device, scratch: &Scratch, choices: &mut Choices<'_>) {
    let mut guest = Guest::new(&[]);
    guest.start(false);
    let beside = scratch.beside();
    let own = open_fds();
    let mut number = 0;
    let mut is_first = true;
    for _ in 0..REQUESTS {
        if choices.is_empty() {
            break;
        }
        // Most begin as a guest does.
        let kind = if is_first && !choices.once_in(16) {
            INIT
        } else {
            choices.byte()
        };
        is_first = false;
        match kind {
            0xF8..=0xFB => move_state(&mut device, choices),
            0xFC => device.reset(),
            _ => {
                let request = any_request(kind, choices);
                let reply = ask(&mut device, &mut guest, &request, number, choices);
                let mut parts = reply.windows(scratch.secret.len());
                assert!(
                    !parts.any(|part| part == scratch.secret),
                    "the secret was told"
                );
                number = number.wrapping_add(1);
            }
        }
        check_open(&own, scratch);
    }
    drop(device);
    assert_eq!(scratch.beside(), beside, "what is not served was changed");
    let secret = fs::read(scratch.path.join("secret")).expect("it is there");
    assert_eq!(secret, scratch.secret);
}

/// Everything that was opened for the guest is served, and it is not too much.
fn check_open(own: &BTreeMap<i32, PathBuf>, scratch: &Scratch) {
    let served = scratch.served();
    let mut count = 0;
    for (fd, path) in open_fds() {
        if own.get(&fd) == Some(&path) {
            continue;
        }
        count += 1;
        assert!(path.starts_with(&served), "{} was opened", path.display());
    }
    assert!(count <= GUEST_FDS, "{count} descriptors are open");
}

/// The device's state out of it, changed a little, and back into it.
fn move_state(device: &mut impl Device, choices: &mut Choices<'_>) {
    // SAFETY: a C string and no other pointers; the descriptor is new and belongs to nobody.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"state".as_ptr(), 1)) };
    let copy = || file.try_clone().expect("a descriptor");
    if device.transfer(StateTransfer::Save, copy()).is_err() {
        return;
    }
    let (into, from) = (copy(), copy());
    for _ in 0..choices.byte() % 4 {
        let length = file.metadata().map_or(0, |data| data.len());
        let place = u64::from(choices.u16()) % (length + 1);
        file.seek(std::io::SeekFrom::Start(place)).expect("a place");
        let count = choices.below(9);
        (&into)
            .write_all(choices.bytes(count))
            .expect("there is room");
    }
    file.rewind().expect("a place");
    drop(into);
    // What is refused must leave a device that goes on.
    let _ = device.transfer(StateTransfer::Load, from);
}

/// Puts a request into the queue, and returns the reply.
fn ask(
    device: &mut impl Device,
    guest: &mut Guest,
    request: &[u8],
    number: u16,
    choices: &mut Choices<'_>,
) -> Vec<u8> {
    let room = match choices.byte() {
        byte @ 0..=0xF => u32::from(byte) * 3,
        0x10..=0x1F => choices.u16().into(),
        _ => 0x1000,
    }
    .min(MEMORY as u32 - REPLY as u32);
    guest.write(REQUEST, request);
    guest.write(REPLY, &vec![0xA5; MEMORY - REPLY as usize]);
    let mut chain = Vec::new();
    let mut lend = |address: u64, length: usize, flags: u16| {
        chain.push(Lending {
            address,
            length: u32::try_from(length).expect("it is short"),
            flags,
            next: 0,
        });
    };
    let cut = match choices.byte() {
        byte @ 0..=0x3F => usize::from(byte).min(request.len()),
        _ => request.len(),
    };
    lend(REQUEST, cut, 0);
    if cut < request.len() {
        lend(REQUEST + cut as u64, request.len() - cut, 0);
    }
    if room > 0 {
        let cut = u32::from(choices.byte()).min(room);
        lend(REPLY, cut as usize, WRITE);
        lend(REPLY + u64::from(cut), (room - cut) as usize, WRITE);
    }
    let last = chain.len() - 1;
    for (index, lending) in (0..).zip(&mut chain) {
        lending.next = index + 1;
        if usize::from(index) < last {
            lending.flags |= NEXT;
        }
        guest.lend(TABLE, index, lending);
    }
    guest.offer(number, 0);
    let before = guest.read(LENT, MEMORY - LENT as usize);
    device
        .process(0, &mut guest.vring)
        .expect("the queue is sound");
    guest.check_untouched(LENT, &before, &chain);

    let given_back = u16_at(&guest.read(USED + 2, 2), 0);
    assert_eq!(
        given_back,
        number.wrapping_add(1),
        "a request was not given back"
    );
    let entry = USED + 4 + 8 * u64::from(number % crate::guest::SIZE);
    let written = u32_at(&guest.read(entry + 4, 4), 0);
    assert!(written <= room, "more was written than there was room for");
    let reply = guest.read(REPLY, room as usize);
    if written >= REPLY_HEADER {
        assert_eq!(u32_at(&reply, 0), written, "a reply lies about its length");
        assert_eq!(
            reply[8..16],
            request_unique(request),
            "a reply to something else"
        );
    } else {
        assert_eq!(written, 0, "half a reply");
    }
    reply
}

fn request_unique(request: &[u8]) -> [u8; 8] {
    request[8..16].try_into().expect("eight bytes")
}

fn u16_at(bytes: &[u8], place: usize) -> u16 {
    u16::from_le_bytes([bytes[place], bytes[place + 1]])
}

fn u32_at(bytes: &[u8], place: usize) -> u32 {
    u32::from(u16_at(bytes, place)) | u32::from(u16_at(bytes, place + 2)) << 16
}

/// A part of a request's body.
#[derive(Clone, Copy)]
enum Field {
    /// Flags, modes, and numbers of four bytes.
    U32,
    /// Offsets, counts and numbers of eight bytes.
    U64,
    /// An open file.
    Handle,
    /// An inode.
    Node,
    /// The name of something, with its end.
    Name,
    /// The name of an extended attribute, with its end.
    Attribute,
    /// So many bytes of nothing.
    Padding(usize),
    /// How long what follows is, in four bytes.
    Size,
    /// Any bytes.
    Data,
}

/// The numbers of `enum fuse_opcode` (include/uapi/linux/fuse.h), with the layout of each one's body.
const INIT: u8 = 26;
const BODIES: &[(u32, &[Field])] = {
    use Field::{Attribute, Data, Handle, Name, Node, Padding, Size, U32, U64};
    &[
        (1, &[Name]),
        (2, &[U64]),
        (3, &[U32, U32, Handle]),
        (
            4,
            &[
                U32, U32, Handle, U64, U64, U64, U64, U64, U32, U32, U32, U32, U32, U32, U32, U32,
            ],
        ),
        (5, &[]),
        (6, &[Name, Name]),
        (8, &[U32, U32, U32, U32, Name]),
        (9, &[U32, U32, Name]),
        (10, &[Name]),
        (11, &[Name]),
        (12, &[Node, Name, Name]),
        (13, &[Node, Name]),
        (14, &[U32, U32]),
        (15, &[Handle, U64, Size, U32, U64, U32, U32]),
        (16, &[Handle, U64, Size, U32, U64, U32, U32, Data]),
        (17, &[]),
        (18, &[Handle, U32, U32, U64]),
        (20, &[Handle, U32, U32]),
        (21, &[Size, U32, Attribute, Data]),
        (21, &[Size, U32, U32, U32, Attribute, Data]),
        (22, &[Size, U32, Attribute]),
        (23, &[Size, U32]),
        (24, &[Attribute]),
        (25, &[Handle, U32, U32, U64]),
        (26, &[U32, U32, U32, U32, U32, Padding(44)]),
        (27, &[U32, U32]),
        (28, &[Handle, U64, Size, U32, U64, U32, U32]),
        (29, &[Handle, U32, U32, U64]),
        (30, &[Handle, U32, U32]),
        (34, &[U32, U32]),
        (35, &[U32, U32, U32, U32, Name]),
        (38, &[]),
        (42, &[U32, U32, Node, U64, Node, U64, Node, U64]),
        (43, &[Handle, U64, U64, U32, U32]),
        (44, &[Handle, U64, Size, U32, U64, U32, U32]),
        (45, &[Node, U32, U32, Name, Name]),
        (46, &[Handle, U64, U32, U32]),
        (47, &[Handle, U64, Node, Handle, U64, U64, U64]),
        (50, &[U64]),
        (51, &[U32, U32, U32, U32, Name]),
    ]
};

/// A request: of the kind that `kind` stands for, with a body of its layout, or with any.
fn any_request(kind: u8, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let opcode = if kind == INIT {
        // What the kernel of today asks for, and sometimes another.
        for field in [7_u32, 38, 1 << 17] {
            body.extend(field.to_le_bytes());
        }
        let flags = if choices.once_in(4) {
            choices.u32()
        } else {
            u32::MAX
        };
        body.extend(flags.to_le_bytes());
        body.extend([0; 48]);
        u32::from(INIT)
    } else if kind >= 0xF0 {
        let length = usize::from(choices.byte());
        body.extend(choices.bytes(length));
        choices.byte().into()
    } else {
        let (opcode, fields) = BODIES[usize::from(kind) % BODIES.len()];
        for field in fields {
            put(&mut body, *field, choices);
        }
        opcode
    };
    let mut extension = 0;
    if choices.once_in(16) {
        // Groups of the caller or a security context, or neither.
        let length = choices.below(24);
        let bytes = choices.bytes(length);
        body.extend(bytes);
        extension = choices.pick(&[bytes.len() as u16 / 8, 1, u16::MAX]);
    }
    let whole = HEADER + body.len();
    let mut request = Vec::with_capacity(whole);
    let length = match choices.byte() {
        0 => choices.u32(),
        1 => HEADER as u32,
        2 => whole as u32 + 1,
        _ => whole as u32,
    };
    request.extend(length.to_le_bytes());
    request.extend(opcode.to_le_bytes());
    request.extend(u64::from(kind).to_le_bytes());
    put(&mut request, Field::Node, choices);
    let owner = choices.pick(&[0_u32, 0, 1000, 1000, 65534, u32::MAX]);
    request.extend(owner.to_le_bytes());
    request.extend(owner.to_le_bytes());
    request.extend(1_u32.to_le_bytes());
    request.extend(extension.to_le_bytes());
    request.extend([0; 2]);
    request.append(&mut body);
    request.truncate(usize::from(u16::MAX) / 2 - 0x1000);
    request
}

fn put(out: &mut Vec<u8>, field: Field, choices: &mut Choices<'_>) {
    const NAMES: &[&[u8]] = &[
        b"file",
        b"dir",
        b"inner",
        b"other",
        b"link",
        b"up",
        b"whole",
        b"new",
        b"a",
        b".",
        b"..",
        b"",
        b"../secret",
        b"dir/inner",
        b"/etc/passwd",
        b"up/secret",
        b"secret",
        b"served",
    ];
    const ATTRIBUTES: &[&[u8]] = &[
        b"user.a",
        b"user.",
        b"",
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.overlay.opaque",
    ];
    match field {
        Field::U32 => {
            const NEAR: &[u32] = &[
                0,
                0,
                1,
                2,
                3,
                0o100_644,
                0o40_755,
                0o10_644,
                0o20_666,
                0o140_777,
                0o120_777,
                0o6755,
                0x200,
                0x241,
                0x8000,
                0x10_0000,
                0x40_0000,
                u32::MAX,
            ];
            let value = match choices.byte() {
                byte @ 0..=0xDF => NEAR[usize::from(byte) % NEAR.len()],
                _ => choices.u32(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::U64 => out.extend(choices.number().to_le_bytes()),
        Field::Handle => {
            let value = match choices.byte() {
                byte @ 0..=0xF7 => u64::from(byte % 8),
                _ => choices.u64(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Node => {
            let value = match choices.byte() {
                byte @ 0..=0xF7 => u64::from(byte % 12),
                _ => choices.u64(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Name | Field::Attribute => {
            let known = if matches!(field, Field::Name) {
                NAMES
            } else {
                ATTRIBUTES
            };
            match choices.byte() {
                byte @ 0..=0xDF => out.extend(known[usize::from(byte) % known.len()]),
                0xE0..=0xE7 => out.extend([b'n'; 300]),
                _ => {
                    let length = choices.below(20);
                    out.extend(choices.bytes(length));
                }
            }
            if !choices.once_in(32) {
                out.push(0);
            }
        }
        Field::Padding(count) => out.extend(vec![0; count]),
        Field::Size => {
            let value = match choices.byte() {
                byte @ 0..=0xBF => u32::from(byte) * 8,
                0xC0..=0xDF => 4096,
                0xE0..=0xEF => 1 << 20,
                _ => choices.u32(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Data => {
            let length = usize::from(choices.byte());
            let known = choices.bytes(length.min(16));
            out.extend(known);
            out.extend(vec![b'd'; length - known.len()]);
        }
    }
}
