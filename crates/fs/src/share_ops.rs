//! What a share answers to each kind of request: checked here, done by the library, counted here.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

use crate::request::{check_name, check_range, is_for_a_listing};
use crate::share::{check_mknod, check_xattr, known_names, missing, unnamed, ShareFs};
use crate::tree_state::invalid;

type Inode = u64;
type Handle = u64;

impl FileSystem for ShareFs {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // One session after the other, also where several threads answer.
        let _session = self
            .0
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.0.budget.restart(HashMap::new(), &[]);
        let wanted = self.0.files.init(capable)?;
        // The host's kernel itself takes set-id bits away when a process without privileges writes, so that the guest
        // need not ask for `security.capability` before every write.
        Ok(wanted | (capable & FsOptions::HANDLE_KILLPRIV_V2))
    }

    fn destroy(&self) {
        let _session = self
            .0
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.0.files.destroy();
        self.0.budget.restart(HashMap::new(), &[]);
    }

    fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.check_known(parent)?;
        check_name(name)?;
        if is_for_a_listing() && self.is_scarce() {
            return Ok(unnamed());
        }
        match self.0.files.lookup(ctx, parent, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(missing()),
            found => found.map(|entry| self.told(parent, name, entry)),
        }
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
        self.check_known(inode)?;
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
        self.check_known(inode)?;
        self.check_write()?;
        let valid = self.without_owner(ctx, inode, &mut attr, valid)?;
        self.0.files.setattr(ctx, inode, attr, handle, valid)
    }

    fn readlink(&self, ctx: Context, inode: Inode) -> io::Result<Vec<u8>> {
        self.check_known(inode)?;
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
        self.check_known(parent)?;
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .symlink(ctx, target, parent, name, extensions)
            .map(|entry| self.told(parent, name, entry))
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
        self.check_known(parent)?;
        self.check_new(name)?;
        check_mknod(mode, rdev)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .mknod(ctx, parent, name, mode, rdev, umask, extensions)
            .map(|entry| self.told(parent, name, entry))
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
        self.check_known(parent)?;
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        self.0
            .files
            .mkdir(ctx, parent, name, mode, umask, extensions)
            .map(|entry| self.told(parent, name, entry))
    }

    fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_known(parent)?;
        self.check_new(name)?;
        self.0.files.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_known(parent)?;
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
        self.check_known(old_parent)?;
        self.check_known(new_parent)?;
        self.check_new(old_name)?;
        check_name(new_name)?;
        self.0
            .files
            .rename(ctx, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.check_known(inode)?;
        self.check_known(parent)?;
        self.check_new(name)?;
        self.0
            .files
            .link(ctx, inode, parent, name)
            .map(|entry| self.told(parent, name, entry))
    }

    fn open(
        &self,
        ctx: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        self.check_known(inode)?;
        self.check_open(flags)?;
        let opened = self.0.files.open(ctx, inode, kill_priv, flags)?;
        self.0.budget.open(inode, opened.0);
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
        self.check_known(parent)?;
        self.check_new(name)?;
        let extensions = self.own_groups(extensions);
        let (entry, handle, options) = self
            .0
            .files
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)?;
        let entry = self.told(parent, name, entry);
        self.0.budget.open(entry.inode, handle);
        Ok((entry, handle, options))
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
        self.check_known(inode)?;
        check_range(offset, size)?;
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
        self.check_known(inode)?;
        self.check_write()?;
        check_range(offset, size)?;
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
        self.check_known(inode)?;
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
        self.check_known(inode)?;
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
        self.check_known(inode)?;
        self.0
            .files
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)?;
        self.0.budget.close(handle);
        Ok(())
    }

    fn statfs(&self, ctx: Context, inode: Inode) -> io::Result<libc::statvfs64> {
        self.check_known(inode)?;
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
        self.check_known(inode)?;
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
        self.check_known(inode)?;
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
        self.check_known(inode)?;
        Ok(match self.0.files.listxattr(ctx, inode, size)? {
            ListxattrReply::Names(names) => ListxattrReply::Names(known_names(&names)),
            count => count,
        })
    }

    fn removexattr(&self, ctx: Context, inode: Inode, name: &CStr) -> io::Result<()> {
        self.check_known(inode)?;
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
        self.check_known(inode)?;
        let opened = self.0.files.opendir(ctx, inode, flags)?;
        self.0.budget.open(inode, opened.0);
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
        self.check_known(inode)?;
        self.0.files.readdir(ctx, inode, handle, size, offset)
    }

    fn fsyncdir(
        &self,
        ctx: Context,
        inode: Inode,
        datasync: bool,
        handle: Handle,
    ) -> io::Result<()> {
        self.check_known(inode)?;
        self.0.files.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()> {
        self.check_known(inode)?;
        self.0.files.releasedir(ctx, inode, flags, handle)?;
        self.0.budget.close(handle);
        Ok(())
    }

    fn access(&self, ctx: Context, inode: Inode, mask: u32) -> io::Result<()> {
        self.check_known(inode)?;
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
        self.check_known(inode)?;
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
        self.check_known(inode_in)?;
        self.check_known(inode_out)?;
        self.check_write()?;
        self.0.files.copyfilerange(
            ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, length, flags,
        )
    }

    fn syncfs(&self, ctx: Context, inode: Inode) -> io::Result<()> {
        self.check_known(inode)?;
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
        let vessel = (self.0.vessel.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| invalid("a second state"))?;
        let (state, held) = vessel.fill(state, self.0.guest_fds)?;
        self.0.files.deserialize_and_apply(state)?;
        self.0.budget.restart(held.inodes, &held.handles);
        Ok(())
    }
}
