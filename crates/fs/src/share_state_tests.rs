use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use virtiofsd::filesystem::{Context, FileSystem, FsOptions, SerializableFileSystem};

use super::*;
use crate::ids::Ids;
use crate::limits::RESERVED_FDS;
use crate::share::{ShareConfig, ShareFs};

const DESCRIPTORS: u64 = 448;

struct Scratch(PathBuf);

impl Scratch {
    /// A directory that is served, `served`, with `dir/file` in it, and a file beside it.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cloche-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("served/dir")).unwrap();
        fs::write(path.join("served/dir/file"), b"text").unwrap();
        Scratch(path)
    }

    fn served(&self) -> PathBuf {
        self.0.join("served")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn share(root: &Path) -> ShareFs {
    let config = ShareConfig {
        root: root.to_str().unwrap().into(),
        ids: Ids::Caller {
            uid: 1000,
            gid: 1000,
        },
        fd_limit: RESERVED_FDS + DESCRIPTORS,
        is_readonly: false,
    };
    let share = ShareFs::new(&config).unwrap();
    share.init(FsOptions::all()).unwrap();
    share
}

fn ctx() -> Context {
    Context {
        uid: 0.into(),
        gid: 0.into(),
        pid: 1,
    }
}

/// A file that holds these bytes and is read from its beginning.
fn holding(bytes: &[u8]) -> File {
    let mut file = Vessel::new().unwrap().0;
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn saved(share: &ShareFs) -> Vec<u8> {
    let mut file = holding(b"");
    share.prepare_serialization(std::sync::Arc::default());
    share.serialize(file.try_clone().unwrap()).unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A state with the root and one inode in it, of this name.
fn state(name: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 2, 1, 2, 0, 0, 2, 1, 1, 1, name.len() as u8];
    bytes.extend(name);
    bytes.extend([0, 3, 0, 1, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn what_the_library_writes_is_loaded_and_the_guest_goes_on() {
    let scratch = Scratch::new("whole");
    let before = share(&scratch.served());
    let dir = before.lookup(ctx(), ROOT, c"dir").unwrap().inode;
    let file = before.lookup(ctx(), dir, c"file").unwrap().inode;
    let handle = before
        .open(ctx(), file, false, libc::O_RDONLY as u32)
        .unwrap()
        .0
        .unwrap();
    let bytes = saved(&before);
    check(&bytes, DESCRIPTORS).unwrap();
    for length in 0..bytes.len() {
        assert!(check(&bytes[..length], DESCRIPTORS).is_err(), "{length}");
    }
    let after = share(&scratch.served());
    after.deserialize_and_apply(holding(&bytes)).unwrap();
    assert_eq!(after.getattr(ctx(), file, None).unwrap().0.size, 4);
    after
        .release(ctx(), file, 0, handle, false, false, None)
        .unwrap();
    // There is no second one: a VMM loads the state of a machine once.
    assert!(after.deserialize_and_apply(holding(&bytes)).is_err());
}

#[test]
fn a_name_that_leads_out_of_the_share_is_refused() {
    let scratch = Scratch::new("out");
    let served = share(&scratch.served());
    assert!(served
        .deserialize_and_apply(holding(&state(b"dir")))
        .is_ok());
    assert_eq!(
        served.getattr(ctx(), 2, None).unwrap().0.mode & libc::S_IFMT,
        libc::S_IFDIR
    );
    for name in [&b".."[..], b".", b"", b"dir/../..", b"/etc/passwd", b"a\0b"] {
        let served = share(&scratch.served());
        let refused = served.deserialize_and_apply(holding(&state(name)));
        assert!(refused.is_err(), "{name:?}");
    }
    // The twin: the library alone believes it.
    let twin = share(&scratch.served());
    twin.0
        .files
        .deserialize_and_apply(holding(&state(b"..")))
        .unwrap();
    let found = twin.0.files.getattr(ctx(), 2, None).unwrap().0;
    assert_eq!(found.ino, fs::metadata(&scratch.0).unwrap().ino());
}

#[test]
fn a_state_that_is_too_long_is_not_read_to_its_end() {
    let scratch = Scratch::new("long");
    let long = |length: u64| {
        let file = holding(b"");
        file.set_len(length).unwrap();
        file
    };
    let place = |mut file: File| file.stream_position().unwrap();
    const LENGTH: u64 = 1 << 20;
    let file = long(LENGTH);
    let served = share(&scratch.served());
    assert!(served
        .deserialize_and_apply(file.try_clone().unwrap())
        .is_err());
    let most = DESCRIPTORS * (MOST_INODE + MOST_HANDLE) + MOST_REST;
    assert_eq!(place(file), most + 1);
    // The twin: the library alone reads all of it.
    let file = long(LENGTH);
    let _ = served
        .0
        .files
        .deserialize_and_apply(file.try_clone().unwrap());
    assert_eq!(place(file), LENGTH);
}

#[test]
fn more_than_the_guest_may_hold_is_refused() {
    let many = |count: u8, handles: u8| {
        let mut bytes = vec![1, count, 1, count, 0, 0];
        for number in 2..=count {
            bytes.extend([number, 1, 1, 1, 1, number, 0]);
        }
        bytes.extend([count + 1, handles]);
        for number in 0..handles {
            bytes.extend([number, 1, 0, 0]);
        }
        bytes.extend([handles, 0, 0, 0, 0, 0]);
        bytes
    };
    // Names that are no names: slash and point.
    let most = 40;
    assert!(check(&many(40, 0), most).is_ok());
    assert!(check(&many(39, 1), most).is_ok());
    assert!(check(&many(41, 0), most).is_err());
    assert!(check(&many(40, 1), most).is_err());
}

#[test]
fn what_the_library_would_not_write_is_refused() {
    let good = state(b"dir");
    assert!(check(&good, 2).is_ok());
    for (place, value) in [
        (0, 0),  // another version
        (1, 3),  // an inode that is not there
        (2, 2),  // no root
        (3, 0),  // a root that nothing holds
        (4, 2),  // a root that is nowhere
        (4, 1),  // a root in something
        (5, 1),  // a file handle
        (6, 1),  // the root once more
        (8, 0),  // another root
        (8, 3),  // a whole path
        (8, 4),  // a file handle's place
        (9, 9),  // in nothing
        (10, 2), // a shorter name
        (14, 1), // a file handle
        (15, 2), // a number that is yet to come
        (16, 1), // an open file that is not there
        (18, 2), // an option that is neither
        (22, 1), // a place of file handles
    ] {
        let mut bytes = good.clone();
        bytes[place] = value;
        assert!(check(&bytes, 2).is_err(), "{place} {value}");
    }
    let longer = [&good[..], b"\0"].concat();
    assert!(check(&longer, 2).is_err());
    for number in [
        &[0xFF; 10][..],
        &[0x80; 11],
        &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2],
    ] {
        assert!(Input(number).number().is_err(), "{number:?}");
    }
    let largest = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
    assert_eq!(Input(&largest).number().unwrap(), u64::MAX);
}

#[test]
fn a_restored_share_knows_what_lies_where_and_lets_go_of_it() {
    let scratch = Scratch::new("places");
    for place in ["7", "8"] {
        fs::create_dir_all(scratch.served().join(place).join("inner")).unwrap();
        fs::write(scratch.served().join(place).join("inner/file"), b"text").unwrap();
    }
    let before = share(&scratch.served());
    let walk = |share: &ShareFs, place: &CStr| {
        let top = share.lookup(ctx(), ROOT, place).unwrap().inode;
        let inner = share.lookup(ctx(), top, c"inner").unwrap().inode;
        let file = share.lookup(ctx(), inner, c"file").unwrap().inode;
        let (handle, _) = share.open(ctx(), file, false, 0).unwrap();
        (file, handle.unwrap())
    };
    let (file, handle) = walk(&before, c"7");
    let (other, other_handle) = walk(&before, c"8");
    // Twice: the guest holds it as often.
    walk(&before, c"8");
    let bytes = saved(&before);
    let after = share(&scratch.served());
    after.deserialize_and_apply(holding(&bytes)).unwrap();
    assert_eq!(after.held_fds(), before.held_fds());
    assert_eq!(after.let_go(b"7").unwrap(), 4);
    let refused = after.getattr(ctx(), file, None).map(drop);
    let errno = refused.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ESTALE));
    assert!(after.fsync(ctx(), file, false, handle).is_err());
    assert!(after.fsync(ctx(), other, false, other_handle).is_ok());
    // What is told from now on is counted with it; what was forgotten once is still known, and then no more.
    after.lookup(ctx(), ROOT, c"8").unwrap();
    after.forget(ctx(), other, 1);
    assert!(after.getattr(ctx(), other, None).is_ok());
    after.forget(ctx(), other, 1);
    assert!(after.getattr(ctx(), other, None).is_err());
}
