use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use virtiofsd::soft_idmap::Id;

use super::*;
use crate::nodes::MOST_LOST;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("cloche-fs-tree-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ctx() -> Context {
    Context {
        uid: 0.into(),
        gid: 0.into(),
        pid: 1,
    }
}

fn tree(root: &Path, capacity: u64) -> TreeFs {
    let tree = TreeFs::new(
        root.to_str().unwrap(),
        Ids::SquashRoot,
        capacity + RESERVED_FDS,
    )
    .unwrap();
    tree.init(FsOptions::all()).unwrap();
    tree
}

fn name(number: usize) -> CString {
    CString::new(format!("f{number:05}")).unwrap()
}

/// Collects what is read.
struct Sink<'a>(&'a mut Vec<u8>);

impl ZeroCopyWriter for Sink<'_> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        count: usize,
        offset: u64,
        _flags: Option<virtiofsd::oslib::ReadvFlags>,
    ) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; count];
        let length = file.read_at(&mut buffer, offset)?;
        self.0.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

fn read(tree: &TreeFs, inode: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    tree.read(ctx(), inode, 0, Sink(&mut data), 4096, 0, None, 0)?;
    Ok(data)
}

fn names(tree: &TreeFs, inode: u64) -> Vec<CString> {
    let mut found = Vec::new();
    let mut offset = 0;
    loop {
        let mut listing = tree.readdir(ctx(), inode, 0, 256, offset).unwrap();
        let before = found.len();
        while let Some(entry) = listing.next() {
            offset = entry.offset;
            found.push(entry.name.to_owned());
        }
        if found.len() == before {
            found.sort();
            return found;
        }
    }
}

#[test]
fn any_number_of_files_is_known_and_read_with_few_descriptors() {
    const FILES: usize = 2_000;
    const CAPACITY: u64 = 8;
    let scratch = Scratch::new("many");
    fs::create_dir_all(scratch.path().join("a/b")).unwrap();
    for number in 0..FILES {
        fs::write(
            scratch
                .path()
                .join("a/b")
                .join(name(number).to_str().unwrap()),
            number.to_string(),
        )
        .unwrap();
    }
    let tree = tree(scratch.path(), CAPACITY);
    let a = tree.lookup(ctx(), ROOT, c"a").unwrap().inode;
    let b = tree.lookup(ctx(), a, c"b").unwrap().inode;
    let inodes: Vec<u64> = (0..FILES)
        .map(|number| tree.lookup(ctx(), b, &name(number)).unwrap().inode)
        .collect();
    for _ in 0..2 {
        for (number, inode) in inodes.iter().enumerate() {
            assert_eq!(read(&tree, *inode).unwrap(), number.to_string().as_bytes());
            assert!(tree.state().files.kept() as u64 <= CAPACITY);
        }
    }
    assert_eq!(tree.known_inodes(), FILES + 3);
    assert_eq!(names(&tree, b).len(), FILES + 2);
}

#[test]
fn a_name_that_does_not_exist_is_remembered() {
    let scratch = Scratch::new("nothing");
    let tree = tree(scratch.path(), 8);
    let entry = tree.lookup(ctx(), ROOT, c"missing").unwrap();
    assert_eq!((entry.inode, entry.entry_timeout), (0, LIFETIME));
    assert_eq!(tree.known_inodes(), 1);
}

#[test]
fn nothing_is_opened_and_nothing_can_be_written() {
    let scratch = Scratch::new("open");
    fs::write(scratch.path().join("file"), b"").unwrap();
    let tree = tree(scratch.path(), 8);
    let inode = tree.lookup(ctx(), ROOT, c"file").unwrap().inode;
    let error = |flags: i32| {
        tree.open(ctx(), inode, false, flags as u32)
            .unwrap_err()
            .raw_os_error()
    };
    assert_eq!(error(libc::O_RDONLY), Some(libc::ENOSYS));
    assert_eq!(error(libc::O_RDWR), Some(libc::EROFS));
    assert_eq!(error(libc::O_RDONLY | libc::O_TRUNC), Some(libc::EROFS));
    assert_eq!(
        tree.opendir(ctx(), ROOT, 0).unwrap_err().raw_os_error(),
        Some(libc::ENOSYS)
    );
    assert!(tree.unlink(ctx(), ROOT, c"file").is_err());
}

#[test]
fn names_and_links_do_not_lead_out_of_the_tree() {
    let scratch = Scratch::new("names");
    fs::create_dir(scratch.path().join("inner")).unwrap();
    symlink("/etc", scratch.path().join("inner/link")).unwrap();
    let tree = tree(&scratch.path().join("inner"), 8);
    for bad in [c"..", c".", c"", c"../inner", c"/etc", c"link/passwd"] {
        let error = tree.lookup(ctx(), ROOT, bad).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{bad:?}");
    }
    let link = tree.lookup(ctx(), ROOT, c"link").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(tree.readlink(ctx(), link.inode).unwrap(), b"/etc");
    assert!(tree.lookup(ctx(), link.inode, c"passwd").is_err());
    assert!(tree.readdir(ctx(), link.inode, 0, 4096, 0).is_err());
    assert!(read(&tree, link.inode).is_err());
}

#[test]
fn only_regular_files_are_read() {
    let scratch = Scratch::new("kinds");
    let fifo = CString::new(scratch.path().join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a nul byte.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o644) }, 0);
    let tree = tree(scratch.path(), 8);
    let fifo = tree.lookup(ctx(), ROOT, c"fifo").unwrap();
    assert_eq!(fifo.attr.mode & libc::S_IFMT, libc::S_IFIFO);
    assert_eq!(
        read(&tree, fifo.inode).unwrap_err().raw_os_error(),
        Some(libc::EBADF)
    );
    assert_eq!(
        read(&tree, ROOT).unwrap_err().raw_os_error(),
        Some(libc::EBADF)
    );
    assert_eq!(
        read(&tree, 4711).unwrap_err().raw_os_error(),
        Some(libc::ESTALE)
    );
}

#[test]
fn a_replaced_file_is_the_old_one_while_it_is_open_and_stale_afterwards() {
    let scratch = Scratch::new("replaced");
    let path = scratch.path().join("file");
    fs::write(&path, b"old").unwrap();
    fs::write(scratch.path().join("other"), b"").unwrap();
    let tree = tree(scratch.path(), 1);
    let inode = tree.lookup(ctx(), ROOT, c"file").unwrap().inode;
    let other = tree.lookup(ctx(), ROOT, c"other").unwrap().inode;
    assert_eq!(read(&tree, inode).unwrap(), b"old");
    fs::write(scratch.path().join("new"), b"new").unwrap();
    fs::rename(scratch.path().join("new"), &path).unwrap();
    assert_eq!(read(&tree, inode).unwrap(), b"old");
    read(&tree, other).unwrap();
    assert_eq!(
        read(&tree, inode).unwrap_err().raw_os_error(),
        Some(libc::ESTALE)
    );
    assert_eq!(
        tree.getattr(ctx(), inode, None).unwrap_err().raw_os_error(),
        Some(libc::ESTALE)
    );
    let again = tree.lookup(ctx(), ROOT, c"file").unwrap().inode;
    assert_ne!(again, inode);
    assert_eq!(read(&tree, again).unwrap(), b"new");
}

#[test]
fn what_is_forgotten_holds_nothing() {
    let scratch = Scratch::new("forget");
    fs::create_dir(scratch.path().join("dir")).unwrap();
    fs::write(scratch.path().join("dir/file"), b"x").unwrap();
    let tree = tree(scratch.path(), 8);
    let dir = tree.lookup(ctx(), ROOT, c"dir").unwrap().inode;
    let file = tree.lookup(ctx(), dir, c"file").unwrap().inode;
    read(&tree, file).unwrap();
    tree.forget(ctx(), dir, 1);
    assert_eq!(read(&tree, file).unwrap(), b"x");
    tree.forget(ctx(), file, 1);
    assert_eq!(tree.known_inodes(), 1);
    assert_eq!(tree.state().files.kept(), 0);
    tree.destroy();
    assert_eq!(names(&tree, ROOT).len(), 3);
}

#[test]
fn inode_numbers_of_different_devices_differ() {
    let mut devices = vec![1];
    let key = |dev| Key {
        dev,
        ino: 2,
        mount: 0,
    };
    let first = unique_ino(&mut devices, key(1));
    let second = unique_ino(&mut devices, key(9));
    assert_eq!(first, 2);
    assert_ne!(first, second);
    assert_eq!(unique_ino(&mut devices, key(9)), second);
}

#[test]
fn owners_are_shown_as_root() {
    let scratch = Scratch::new("owner");
    let tree = tree(scratch.path(), 8);
    let (attr, lifetime) = tree.getattr(ctx(), ROOT, None).unwrap();
    assert_eq!((attr.uid.into_inner(), lifetime), (0, LIFETIME));
    assert_eq!(
        tree.getxattr(ctx(), ROOT, c"user.a", 0)
            .err()
            .unwrap()
            .raw_os_error(),
        Some(libc::ENOSYS)
    );
}

fn through_a_file(scratch: &Scratch, from: &TreeFs, to: &TreeFs) -> io::Result<()> {
    let path = scratch.path().join("state");
    from.serialize(File::create(&path).unwrap()).unwrap();
    let done = to.deserialize_and_apply(File::open(&path).unwrap());
    fs::remove_file(&path).unwrap();
    done
}

/// A tree with a file in a directory, two servers of it, and the numbers of both as the first one gave them.
fn two_servers(scratch: &Scratch) -> (TreeFs, TreeFs, u64, u64) {
    fs::create_dir(scratch.path().join("dir")).unwrap();
    fs::write(scratch.path().join("dir/file"), b"text").unwrap();
    let before = tree(scratch.path(), 8);
    let dir = before.lookup(ctx(), ROOT, c"dir").unwrap().inode;
    let file = before.lookup(ctx(), dir, c"file").unwrap().inode;
    (before, tree(scratch.path(), 8), dir, file)
}

#[test]
fn a_restored_server_knows_what_the_saved_one_knew() {
    let scratch = Scratch::new("state");
    let (before, after, dir, file) = two_servers(&scratch);
    before.forget(ctx(), dir, 1);
    through_a_file(&scratch, &before, &after).unwrap();
    assert_eq!(read(&after, file).unwrap(), b"text");
    assert_eq!(after.lookup(ctx(), ROOT, c"dir").unwrap().inode, dir);
    after.forget(ctx(), dir, 1);
    after.forget(ctx(), file, 1);
    assert_eq!(after.known_inodes(), 1);
    fs::write(scratch.path().join("new"), b"").unwrap();
    assert!(after.lookup(ctx(), ROOT, c"new").unwrap().inode > file);
}

#[test]
fn what_is_gone_at_a_restore_is_named() {
    let scratch = Scratch::new("gone");
    let (before, after, ..) = two_servers(&scratch);
    fs::remove_file(scratch.path().join("dir/file")).unwrap();
    let error = through_a_file(&scratch, &before, &after).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/dir/file is not there any more"),
        "{error}"
    );
    fs::remove_dir(scratch.path().join("dir")).unwrap();
    let error = through_a_file(&scratch, &before, &after).unwrap_err();
    assert!(
        error.to_string().starts_with("/dir is not there any more"),
        "{error}"
    );
}

/// A state without end: one file after the other, each said to lie where the same one lies.
struct Flood {
    number: u64,
    given: Vec<u8>,
    most: u64,
}

impl Flood {
    fn new(most: u64) -> Self {
        let given = [
            &b"clochefs"[..],
            &1_u32.to_le_bytes(),
            &u64::MAX.to_le_bytes(),
        ]
        .concat();
        Flood {
            number: ROOT,
            given,
            most,
        }
    }
}

impl Read for Flood {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.given.is_empty() && self.number < self.most {
            self.number += 1;
            for field in [self.number, ROOT, 1] {
                self.given.extend(field.to_le_bytes());
            }
            self.given.extend(4_u32.to_le_bytes());
            self.given.extend(b"file");
        }
        let count = room.len().min(self.given.len());
        room[..count].copy_from_slice(&self.given[..count]);
        self.given.drain(..count);
        Ok(count)
    }
}

#[test]
fn a_state_without_end_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new("flood");
    fs::write(scratch.path().join("file"), b"text").unwrap();
    let tree = tree(scratch.path(), 8);
    let mut flood = Flood::new(u64::MAX);
    let error = tree.load(&mut flood).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // The reader has a buffer.
    assert!(flood.number < MOST_LOST as u64 + 1000);
    let path = scratch.path().join("state");
    let many = 2 * MOST_LOST as u64;
    io::copy(&mut Flood::new(many), &mut File::create(&path).unwrap()).unwrap();
    assert!(tree
        .deserialize_and_apply(File::open(&path).unwrap())
        .is_err());
    assert_eq!(tree.known_inodes(), 1);
}

#[test]
fn without_its_bound_a_state_is_taken_however_long_it_is() {
    let scratch = Scratch::new("flood-mutant");
    fs::write(scratch.path().join("file"), b"text").unwrap();
    let tree = tree(scratch.path(), 8);
    tree.state().nodes.bound_lost(usize::MAX);
    let many = 2 * MOST_LOST as u64;
    tree.load(Flood::new(many)).unwrap();
    assert_eq!(tree.known_inodes() as u64, many);
}
