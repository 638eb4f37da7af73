//! The system tree: read-only, and unchanged while it is served.
//!
//! Because it does not change, an inode need not be held open to be found again: its directory and its name are enough.
//! So the guest may know any number of inodes (an overlay above keeps every one it has seen) while this server holds only
//! the descriptors it used last. And because the guest may cache whatever it is told, most of what a guest kernel asks a
//! file server is never asked:
//!
//! * names that do not exist are remembered as such (a search along `PATH` costs nothing the second time);
//! * files and directories are opened and closed without a word (`ENOSYS` to the first open ends all of it);
//! * the targets of links are cached;
//! * there are no extended attributes (and so no capabilities of files; set-id programs are not concerned).
//!
//! If the host replaces a file all the same, who reads it goes on with the old one while its descriptor is kept; otherwise
//! the guest gets `ESTALE`, and never a mixture of both.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::io::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, DirEntry, DirectoryIterator, Entry, FileSystem, FsOptions, OpenOptions,
    SerializableFileSystem, ZeroCopyWriter,
};
use virtiofsd::fuse::Attr;
use virtiofsd::read_dir::ReadDir;

use crate::ids::Ids;
use crate::limits::RESERVED_FDS;
use crate::nodes::{stale, Nodes, ROOT};
use crate::recent::Recent;
use crate::request::{check_name, check_range};
use crate::stat::{open_at, read_link_at, stat_at, Key, Stat};
use crate::tree_state::{self, Loading};

/// How long the guest may believe what it was told about the tree.
const LIFETIME: Duration = Duration::from_secs(86400);

/// The largest listing made at once, whatever the guest asks for.
const MAX_LISTING: u32 = 1 << 20;

/// Descriptors kept at most, however many are allowed: each keeps an inode of the host in memory.
const MAX_KEPT: u64 = 16384;

/// Inode numbers of the second and of further devices differ in these bits.
const DEVICE_SHIFT: u32 = 48;

/// What a descriptor is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    /// To look names up in a directory (needs no permission to read it).
    Place,
    /// To read a file, or the names in a directory.
    Read,
}

struct State {
    nodes: Nodes,
    files: Recent<(u64, Use)>,
    devices: Vec<u64>,
}

struct Inner {
    root: Arc<File>,
    root_key: Key,
    first_device: u64,
    ids: Ids,
    own: (u32, u32),
    state: Mutex<State>,
}

/// A served tree that does not change.
#[derive(Clone)]
pub struct TreeFs(Arc<Inner>);

impl TreeFs {
    /// Opens the tree at `root`, for a process that may have `fd_limit` descriptors.
    ///
    /// # Errors
    /// When the root is no directory or cannot be opened.
    pub fn new(root: &str, ids: Ids, fd_limit: u64) -> io::Result<Self> {
        let path = CString::new(root)?;
        let root = open_at(libc::AT_FDCWD, &path, libc::O_PATH | libc::O_DIRECTORY)?;
        let root_key = stat_at(&root, c"")?.key;
        // The device most files are on keeps its inode numbers, so that they stay small where they are small.
        let first_device = stat_at(&root, c"usr").map_or(root_key.dev, |stat| stat.key.dev);
        // SAFETY: these two calls cannot fail and touch no memory.
        let own = unsafe { (libc::geteuid(), libc::getegid()) };
        let capacity = fd_limit.saturating_sub(RESERVED_FDS).min(MAX_KEPT) as usize;
        let state = State {
            nodes: Nodes::new(root_key),
            files: Recent::new(capacity),
            devices: vec![first_device],
        };
        let root = Arc::new(root);
        Ok(TreeFs(Arc::new(Inner {
            root,
            root_key,
            first_device,
            ids,
            own,
            state: Mutex::new(state),
        })))
    }

    /// How many inodes the guest knows.
    #[must_use]
    pub fn known_inodes(&self) -> usize {
        self.state().nodes.known()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset(&self) {
        let mut state = self.state();
        state.nodes = Nodes::new(self.0.root_key);
        state.files.clear();
        state.devices = vec![self.0.first_device];
    }

    /// Puts back what a saved state holds, each inode as it is read: what there is no file for ends it there.
    fn load(&self, saved: impl Read) -> io::Result<()> {
        let mut loading = Loading::begin(saved)?;
        let mut state = self.state();
        while let Some(one) = loading.read()? {
            // Directories come first, so the one that is named is the one that is gone.
            let stat = self
                .place(&mut state, one.parent)
                .and_then(|dir| stat_at(&dir, &one.name))
                .map_err(|error| {
                    let path = state.nodes.path(one.parent, &one.name);
                    io::Error::new(
                        error.kind(),
                        format!("{path} is not there any more: {error}"),
                    )
                })?;
            state.nodes.restore(one, stat.key, stat.kind())?;
        }
        state.nodes.resume(loading.next_number());
        Ok(())
    }

    fn attr(&self, state: &mut State, stat: &Stat) -> Attr {
        let ino = unique_ino(&mut state.devices, stat.key);
        stat.to_attr(ino, self.0.ids.to_guest(stat.owner(), self.0.own))
    }

    /// The directory a node is in, and its name there.
    fn place_of(&self, state: &mut State, number: u64) -> io::Result<(Arc<File>, Box<CStr>)> {
        if number == ROOT {
            return Ok((self.0.root.clone(), c"".into()));
        }
        let node = state.nodes.get(number)?;
        let (parent, name) = (node.parent, node.name.clone());
        Ok((self.place(state, parent)?, name))
    }

    /// A directory to look names up in.
    fn place(&self, state: &mut State, number: u64) -> io::Result<Arc<File>> {
        let mut missing = Vec::new();
        let mut next = number;
        let mut dir = loop {
            if next == ROOT {
                break self.0.root.clone();
            }
            if let Some(dir) = state.files.get((next, Use::Place)) {
                break dir;
            }
            missing.push(next);
            next = state.nodes.get(next)?.parent;
        };
        for number in missing.into_iter().rev() {
            let node = state.nodes.get(number)?;
            let opened = open_at(
                dir.as_raw_fd(),
                &node.name,
                libc::O_PATH | libc::O_DIRECTORY,
            )?;
            dir = Arc::new(check_same(opened, node.key)?);
            state.files.put((number, Use::Place), dir.clone());
        }
        Ok(dir)
    }

    /// A regular file or a directory, open for reading.
    fn readable(&self, number: u64, kind: u32) -> io::Result<Arc<File>> {
        let mut state = self.state();
        if let Some(file) = state.files.get((number, Use::Read)) {
            return Ok(file);
        }
        let node = state.nodes.get(number)?;
        let key = node.key;
        if node.kind != kind {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let (dir, name) = self.place_of(&mut state, number)?;
        let name = if name.is_empty() { c"." } else { &name };
        let file = open_at(dir.as_raw_fd(), name, libc::O_RDONLY | libc::O_NONBLOCK)?;
        let file = Arc::new(check_same(file, key)?);
        state.files.put((number, Use::Read), file.clone());
        Ok(file)
    }
}

fn check_same(file: File, key: Key) -> io::Result<File> {
    let found = stat_at(&file, c"")?.key;
    if (found.dev, found.ino) == (key.dev, key.ino) {
        return Ok(file);
    }
    Err(stale())
}

/// A number that is the file's alone in the whole tree, which may stand on several devices of the host.
fn unique_ino(devices: &mut Vec<u64>, key: Key) -> u64 {
    let index = devices
        .iter()
        .position(|device| *device == key.dev)
        .unwrap_or_else(|| {
            devices.push(key.dev);
            devices.len() - 1
        });
    key.ino ^ ((index as u64) << DEVICE_SHIFT)
}

/// The names in one directory, read at once.
pub struct Listing {
    names: ReadDir<Vec<u8>>,
    device_bits: u64,
}

impl DirectoryIterator for Listing {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        let mut entry = self.names.next()?;
        entry.ino ^= self.device_bits;
        Some(entry)
    }
}

impl FileSystem for TreeFs {
    type Inode = u64;
    type Handle = u64;
    type DirIter = Listing;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        self.reset();
        Ok(FsOptions::DO_READDIRPLUS | FsOptions::READDIRPLUS_AUTO | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        self.reset();
    }

    fn lookup(&self, _ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let dir = self.place(&mut self.state(), parent)?;
        let stat = match stat_at(&dir, name) {
            Ok(stat) => stat,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(nothing()),
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        let inode = state.nodes.remember(parent, name, stat.key, stat.kind())?;
        let attr = self.attr(&mut state, &stat);
        Ok(Entry {
            inode,
            generation: 0,
            attr,
            attr_timeout: LIFETIME,
            entry_timeout: LIFETIME,
        })
    }

    fn forget(&self, _ctx: Context, inode: u64, count: u64) {
        let mut state = self.state();
        for gone in state.nodes.forget(inode, count) {
            state.files.remove((gone, Use::Place));
            state.files.remove((gone, Use::Read));
        }
    }

    fn getattr(
        &self,
        _ctx: Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
        let mut state = self.state();
        let key = state.nodes.get(inode)?.key;
        let (dir, name) = self.place_of(&mut state, inode)?;
        let stat = stat_at(&dir, &name)?;
        if stat.key != key {
            return Err(stale());
        }
        Ok((self.attr(&mut state, &stat), LIFETIME))
    }

    fn readlink(&self, _ctx: Context, inode: u64) -> io::Result<Vec<u8>> {
        let (dir, name) = self.place_of(&mut self.state(), inode)?;
        read_link_at(&dir, &name)
    }

    fn open(
        &self,
        _ctx: Context,
        _inode: u64,
        _kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32 != libc::O_RDONLY as u32;
        Err(io::Error::from_raw_os_error(if writes {
            libc::EROFS
        } else {
            libc::ENOSYS
        }))
    }

    fn opendir(
        &self,
        _ctx: Context,
        _inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        _ctx: Context,
        inode: u64,
        _handle: u64,
        mut writer: W,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size)?;
        let file = self.readable(inode, libc::S_IFREG)?;
        writer.read_from_file_at(&file, size as usize, offset, None)
    }

    fn readdir(
        &self,
        _ctx: Context,
        inode: u64,
        _handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Listing> {
        let dir = self.readable(inode, libc::S_IFDIR)?;
        let mut state = self.state();
        let key = Key {
            ino: 0,
            ..state.nodes.get(inode)?.key
        };
        let device_bits = unique_ino(&mut state.devices, key);
        // Under the lock, because the position in the directory belongs to the descriptor.
        let names = ReadDir::new(&*dir, offset, vec![0; size.min(MAX_LISTING) as usize])?;
        Ok(Listing { names, device_bits })
    }

    fn statfs(&self, _ctx: Context, _inode: u64) -> io::Result<libc::statvfs64> {
        let mut out = std::mem::MaybeUninit::<libc::statvfs64>::zeroed();
        // SAFETY: the kernel's answer is written into `out`, which is large enough for it.
        if unsafe { libc::fstatvfs64(self.0.root.as_raw_fd(), out.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeroes is a valid statvfs64, and it has been filled in.
        Ok(unsafe { out.assume_init() })
    }

    // Everything else is left out and answered with `ENOSYS`: all that writes, and extended attributes. An overlay asks for
    // one at every lookup and the kernel at every exec, unless told once that there are none. What they would bring are
    // capabilities of files, which cannot be read in the user namespace of an ordinary user's domain anyway.
}

impl SerializableFileSystem for TreeFs {
    fn serialize(&self, state: File) -> io::Result<()> {
        tree_state::save(&self.state().nodes, state)
    }

    fn deserialize_and_apply(&self, saved: File) -> io::Result<()> {
        self.reset();
        let done = self.load(saved);
        if done.is_err() {
            // Half of what a guest knows is of no use to it.
            self.reset();
        }
        done
    }
}

/// The answer for a name that does not exist and never will.
fn nothing() -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: LIFETIME,
        entry_timeout: LIFETIME,
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
