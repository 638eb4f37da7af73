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
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};

use cloche_device::{Device, StateTransfer};
use cloche_fs::backend::Backend;
use cloche_fs::ids::Ids;
use cloche_fs::limits::RESERVED_FDS;
use cloche_fs::share::{ShareConfig, ShareFs};
use cloche_fs::tree::TreeFs;

use crate::choices::Choices;
use crate::fuse::{any_request, INIT};
use crate::guest::{Guest, Lending, LENT, MEMORY, NEXT, TABLE, USED, WRITE};
use crate::process::open_fds;
use crate::scratch::Scratch;

const REQUESTS: usize = 64;
/// Descriptors that a guest may have.
const GUEST_FDS: u64 = 32;
const REPLY_HEADER: u32 = 16;
/// Where the requests and the replies are.
const REQUEST: u64 = LENT;
const REPLY: u64 = 0x8000;

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

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, AssertUnwindSafe};

    use super::*;
    use crate::mutate::mutations;

    /// Whether one of some thousand inputs shows that a server for `root`, a directory of `scratch`, serves too much.
    fn is_found(name: &str, root: impl Fn(&Scratch) -> PathBuf) -> bool {
        mutations(&[], 3000, 1024).any(|input| {
            let scratch = Scratch::new(name);
            let files = TreeFs::new(
                utf8(&root(&scratch)),
                Ids::SquashRoot,
                RESERVED_FDS + GUEST_FDS,
            );
            let device = Backend::new(files.expect("it is there"), None);
            let mut choices = Choices::new(&input);
            catch_unwind(AssertUnwindSafe(|| {
                converse(device, &scratch, &mut choices)
            }))
            .is_err()
        })
    }

    #[test]
    fn a_server_of_one_directory_more_is_found() {
        assert!(is_found("more", |scratch| scratch.path.clone()));
    }
}
