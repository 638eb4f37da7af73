//! Shares: a tree that guest and host change together.
//!
//! The virtiofsd library's pass-through file system does the work; around it stands what is ours:
//!
//! * **Descriptors.** An inode the guest knows costs a descriptor here, and an ordinary user has few. A guest kernel drops
//!   a directory entry at its last use when the entry's lifetime is over, and then forgets its inode. So once half of the
//!   descriptors are in use entries are told with a lifetime of zero: what is cached stays cached, what is new does not
//!   stay. Listings then carry no attributes, since each would cost a lookup and a forget.
//! * **Owners.** In a user namespace nothing can be given away. A change of owner succeeds without effect on the caller's
//!   own files (`cp -a` and `tar x` as the guest's root work) and is refused (`EPERM`) on everybody else's.
//! * **Names** reach one entry of one directory (no `..`, no `/`); devices cannot be made; of the extended attributes only
//!   `user.*` and `security.capability` exist.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::soft_idmap::Id;

use crate::budget::Budget;
use crate::ids::{Ids, NOBODY};
use crate::limits::RESERVED_FDS;
use crate::request::{check_name, is_for_a_listing};

/// How long the guest may believe what it was told about a share.
const LIFETIME: Duration = Duration::from_secs(1);

type Inode = u64;
type Handle = u64;

/// How a share is served.
#[derive(Debug, Clone)]
pub struct ShareConfig {
    /// Directory to serve.
    pub root: String,
    /// How owners are translated.
    pub ids: Ids,
    /// Soft limit of open descriptors of this process.
    pub fd_limit: u64,
    /// Refuse everything that writes.
    pub is_readonly: bool,
}

struct Inner {
    files: PassthroughFs,
    budget: Budget,
    ids: Ids,
    is_readonly: bool,
}

/// A served tree that others change too.
#[derive(Clone)]
pub struct ShareFs(Arc<Inner>);

impl ShareFs {
    /// Opens the tree.
    ///
    /// # Errors
    /// When the library cannot start, as when `/proc/self/fd` is missing.
    pub fn new(config: &ShareConfig) -> io::Result<Self> {
        // SAFETY: these two calls cannot fail and touch no memory.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let guest_fds = config.fd_limit.saturating_sub(RESERVED_FDS);
        let files = PassthroughFs::new(Config {
            entry_timeout: LIFETIME,
            attr_timeout: LIFETIME,
            cache_policy: CachePolicy::Auto,
            root_dir: config.root.clone(),
            xattr: true,
            readdirplus: true,
            killpriv_v2: config.ids.is_host(),
            uid_map: Some(config.ids.user_map(uid)),
            gid_map: Some(config.ids.group_map(gid)),
            guest_fd_limit: guest_fds,
            ..Default::default()
        })?;
        let budget = Budget::new(guest_fds / 2);
        Ok(ShareFs(Arc::new(Inner {
            files,
            budget,
            ids: config.ids,
            is_readonly: config.is_readonly,
        })))
    }

    /// Descriptors held for the guest.
    #[must_use]
    pub fn held_fds(&self) -> u64 {
        self.0.budget.held()
    }

    /// Counts an entry before it is told, and decides how long the guest may keep it.
    fn told(&self, mut entry: Entry) -> Entry {
        self.0.budget.remember(entry.inode);
        if self.is_scarce() {
            entry.entry_timeout = Duration::ZERO;
        }
        entry
    }

    fn is_scarce(&self) -> bool {
        #[cfg(test)]
        if tests::IS_UNBOUNDED.get() {
            return false;
        }
        self.0.budget.is_scarce()
    }

    fn check_write(&self) -> io::Result<()> {
        if self.0.is_readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    fn check_new(&self, name: &CStr) -> io::Result<()> {
        self.check_write()?;
        check_name(name)
    }

    fn check_open(&self, flags: u32) -> io::Result<()> {
        let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32 != libc::O_RDONLY as u32;
        if writes {
            self.check_write()
        } else {
            Ok(())
        }
    }

    /// A server that may not become somebody else cannot take on the groups of somebody else either.
    fn own_groups(&self, mut extensions: Extensions) -> Extensions {
        if !self.0.ids.is_host() {
            extensions.sup_gids.clear();
        }
        extensions
    }

    /// What is left of a change of attributes when owners cannot be changed.
    fn without_owner(
        &self,
        ctx: Context,
        inode: Inode,
        attr: &mut SetattrIn,
        mut valid: SetattrValid,
    ) -> io::Result<SetattrValid> {
        let owner = SetattrValid::UID | SetattrValid::GID;
        if self.0.ids.is_host() || !valid.intersects(owner) {
            return Ok(valid);
        }
        let (now, _) = self.0.files.getattr(ctx, inode, None)?;
        if matches!(self.0.ids, Ids::Caller { .. }) && now.uid.into_inner() == NOBODY {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        valid.remove(owner);
        // A change of owner takes the set-id bits away, whether or not it changes anything; the guest leaves that to us.
        let bits = privileged_bits(&now);
        if bits != 0 && !valid.contains(SetattrValid::MODE) {
            attr.mode = now.mode & 0o7777 & !bits;
            valid.insert(SetattrValid::MODE);
        }
        Ok(valid)
    }
}

fn privileged_bits(attr: &Attr) -> u32 {
    if attr.mode & libc::S_IFMT != libc::S_IFREG {
        return 0;
    }
    let group = if attr.mode & libc::S_IXGRP != 0 {
        libc::S_ISGID
    } else {
        0
    };
    attr.mode & (libc::S_ISUID | group)
}

fn is_known_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

fn check_xattr(name: &CStr) -> io::Result<()> {
    if is_known_xattr(name.to_bytes()) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Devices give access to what the host is made of; 0:0 is the whiteout of an overlay and leads nowhere.
fn check_mknod(mode: u32, rdev: u32) -> io::Result<()> {
    match mode & libc::S_IFMT {
        libc::S_IFBLK => Err(io::Error::from_raw_os_error(libc::EPERM)),
        libc::S_IFCHR if rdev != 0 => Err(io::Error::from_raw_os_error(libc::EPERM)),
        _ => Ok(()),
    }
}

impl FileSystem for ShareFs {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.0.budget.clear();
        let wanted = self.0.files.init(capable)?;
        // The host's kernel itself takes set-id bits away when a process without privileges writes, so that the guest
        // need not ask for `security.capability` before every write.
        Ok(wanted | (capable & FsOptions::HANDLE_KILLPRIV_V2))
    }

    fn destroy(&self) {
        self.0.files.destroy();
        self.0.budget.clear();
    }

    fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        if is_for_a_listing() && self.is_scarce() {
            return Ok(unnamed());
        }
        self.0
            .files
            .lookup(ctx, parent, name)
            .map(|entry| self.told(entry))
    }

    fn forget(&self, ctx: Context, inode: Inode, count: u64) {
        self.0.files.forget(ctx, inode, count);
        self.0.budget.forget(inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Inode, u64)>) {
        for (inode, count) in requests {
            self.forget(ctx, inode, count);
        }
    }

    fn getattr(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(Attr, Duration)> {
        self.0.files.getattr(ctx, inode, handle)
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: Inode,
        mut attr: SetattrIn,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        self.check_write()?;
        let valid = self.without_owner(ctx, inode, &mut attr, valid)?;
        self.0.files.setattr(ctx, inode, attr, handle, valid)
    }

    fn readlink(&self, ctx: Context, inode: Inode) -> io::Result<Vec<u8>> {
        self.0.files.readlink(ctx, inode)
    }

    fn symlink(
        &self,
        ctx: Context,
        target: &CStr,
        parent: Inode,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .symlink(ctx, target, parent, name, extensions)
            .map(|entry| self.told(entry))
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        check_mknod(mode, rdev)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .mknod(ctx, parent, name, mode, rdev, umask, extensions)
            .map(|entry| self.told(entry))
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .mkdir(ctx, parent, name, mode, umask, extensions)
            .map(|entry| self.told(entry))
    }

    fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_new(name)?;
        self.0.files.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_new(name)?;
        self.0.files.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: Context,
        old_parent: Inode,
        old_name: &CStr,
        new_parent: Inode,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.check_new(old_name)?;
        check_name(new_name)?;
        self.0
            .files
            .rename(ctx, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.check_new(name)?;
        self.0
            .files
            .link(ctx, inode, parent, name)
            .map(|entry| self.told(entry))
    }

    fn open(
        &self,
        ctx: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        self.check_open(flags)?;
        let opened = self.0.files.open(ctx, inode, kill_priv, flags)?;
        self.0.budget.open();
        Ok(opened)
    }

    fn create(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        let (entry, handle, options) = self
            .0
            .files
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)?;
        self.0.budget.open();
        Ok((self.told(entry), handle, options))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        writer: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.0
            .files
            .read(ctx, inode, handle, writer, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        reader: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        self.check_write()?;
        self.0.files.write(
            ctx,
            inode,
            handle,
            reader,
            size,
            offset,
            lock_owner,
            delayed_write,
            kill_priv,
            flags,
        )
    }

    // `flush` is left out: there is nothing to do at a close, and a guest told so once does not ask again.

    fn fsync(&self, ctx: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()> {
        self.0.files.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_write()?;
        self.0
            .files
            .fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: Context,
        inode: Inode,
        flags: u32,
        handle: Handle,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.0
            .files
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)?;
        self.0.budget.close();
        Ok(())
    }

    fn statfs(&self, ctx: Context, inode: Inode) -> io::Result<libc::statvfs64> {
        self.0.files.statfs(ctx, inode)
    }

    fn setxattr(
        &self,
        ctx: Context,
        inode: Inode,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra: SetxattrFlags,
    ) -> io::Result<()> {
        self.check_write()?;
        check_xattr(name)?;
        self.0.files.setxattr(ctx, inode, name, value, flags, extra)
    }

    fn getxattr(
        &self,
        ctx: Context,
        inode: Inode,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        check_xattr(name)?;
        self.0
            .files
            .getxattr(ctx, inode, name, size)
            .map_err(|error| match error.raw_os_error() {
                // Capabilities given in another user namespace cannot be read in this one. A guest that got this answer
                // would refuse to execute the file.
                Some(libc::EOVERFLOW) => io::Error::from_raw_os_error(libc::ENODATA),
                _ => error,
            })
    }

    fn listxattr(&self, ctx: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply> {
        Ok(match self.0.files.listxattr(ctx, inode, size)? {
            ListxattrReply::Names(names) => ListxattrReply::Names(known_names(&names)),
            count => count,
        })
    }

    fn removexattr(&self, ctx: Context, inode: Inode, name: &CStr) -> io::Result<()> {
        self.check_write()?;
        check_xattr(name)?;
        self.0.files.removexattr(ctx, inode, name)
    }

    fn opendir(
        &self,
        ctx: Context,
        inode: Inode,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let opened = self.0.files.opendir(ctx, inode, flags)?;
        self.0.budget.open();
        Ok(opened)
    }

    fn readdir(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        self.0.files.readdir(ctx, inode, handle, size, offset)
    }

    fn fsyncdir(
        &self,
        ctx: Context,
        inode: Inode,
        datasync: bool,
        handle: Handle,
    ) -> io::Result<()> {
        self.0.files.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()> {
        self.0.files.releasedir(ctx, inode, flags, handle)?;
        self.0.budget.close();
        Ok(())
    }

    fn access(&self, ctx: Context, inode: Inode, mask: u32) -> io::Result<()> {
        self.0.files.access(ctx, inode, mask)
    }

    fn lseek(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.0.files.lseek(ctx, inode, handle, offset, whence)
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        inode_in: Inode,
        handle_in: Handle,
        offset_in: u64,
        inode_out: Inode,
        handle_out: Handle,
        offset_out: u64,
        length: u64,
        flags: u64,
    ) -> io::Result<usize> {
        self.check_write()?;
        self.0.files.copyfilerange(
            ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, length, flags,
        )
    }

    fn syncfs(&self, ctx: Context, inode: Inode) -> io::Result<()> {
        self.0.files.syncfs(ctx, inode)
    }
}

impl SerializableFileSystem for ShareFs {
    fn prepare_serialization(&self, cancel: Arc<AtomicBool>) {
        self.0.files.prepare_serialization(cancel);
    }

    fn serialize(&self, state: File) -> io::Result<()> {
        self.0.files.serialize(state)
    }

    fn deserialize_and_apply(&self, state: File) -> io::Result<()> {
        self.0.files.deserialize_and_apply(state)
    }
}

/// An entry of a listing without inode or attributes: the guest takes the name alone.
fn unnamed() -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: Duration::ZERO,
        entry_timeout: Duration::ZERO,
    }
}

fn known_names(names: &[u8]) -> Vec<u8> {
    names
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| is_known_xattr(strip_nul(name)))
        .flatten()
        .copied()
        .collect()
}

fn strip_nul(name: &[u8]) -> &[u8] {
    name.strip_suffix(b"\0").unwrap_or(name)
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
