//! Shares: a tree that guest and host change together.
//!
//! The virtiofsd library's pass-through file system does the work; around it stands what is ours:
//!
//! * **Descriptors.** An inode the guest knows costs a descriptor here, and an ordinary user has few. A guest kernel drops
//!   a directory entry at its last use when the entry's lifetime is over, and then forgets its inode. So once half of the
//!   descriptors are in use entries are told with a lifetime of zero: what is cached stays cached, what is new does not
//!   stay. The last of that half is kept for directories, because a directory that is not cached is looked up again for
//!   every path that leads through it. Listings then carry no attributes, since each would cost a lookup and a forget.
//! * **Owners.** In a user namespace nothing can be given away. A change of owner succeeds without effect on the caller's
//!   own files (`cp -a` and `tar x` as the guest's root work) and is refused (`EPERM`) on everybody else's.
//! * **Names** reach one entry of one directory (no `..`, no `/`); devices cannot be made; of the extended attributes only
//!   `user.*` and `security.capability` exist.

use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtiofsd::filesystem::{Context, Entry, Extensions, FileSystem, SetattrValid};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::soft_idmap::Id;

use crate::budget::Budget;
use crate::ids::{Ids, NOBODY};
use crate::limits::RESERVED_FDS;
use crate::nodes::{stale, ROOT};
use crate::request::check_name;
use crate::share_state::Vessel;

/// How long the guest may believe what it was told about a share.
const LIFETIME: Duration = Duration::from_secs(1);

/// How long it may believe that a name does not exist. Programs ask before they create, and search along paths; a person
/// who makes a file on the host and looks for it in the guest does not notice.
const ABSENCE: Duration = Duration::from_millis(200);

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

pub(crate) struct Inner {
    pub(crate) files: PassthroughFs,
    pub(crate) budget: Budget,
    pub(crate) session: Mutex<()>,
    /// For the one saved state that can be loaded.
    pub(crate) vessel: Mutex<Option<Vessel>>,
    pub(crate) guest_fds: u64,
    ids: Ids,
    is_readonly: bool,
}

/// A served tree that others change too.
#[derive(Clone)]
pub struct ShareFs(pub(crate) Arc<Inner>);

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
            session: Mutex::new(()),
            vessel: Mutex::new(Some(Vessel::new()?)),
            guest_fds,
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
    pub(crate) fn told(&self, parent: u64, name: &CStr, mut entry: Entry) -> Entry {
        self.0.budget.remember(parent, name.to_bytes(), entry.inode);
        let is_directory = entry.attr.mode & libc::S_IFMT == libc::S_IFDIR;
        if self.is_scarce() && (!is_directory || self.0.budget.is_spent()) {
            entry.entry_timeout = Duration::ZERO;
        }
        entry
    }

    /// Refuses what the guest does not know (any more): it was never told, has forgotten it, or the share is gone.
    pub(crate) fn check_known(&self, inode: u64) -> io::Result<()> {
        if inode == ROOT || self.0.budget.knows(inode) {
            return Ok(());
        }
        Err(stale())
    }

    /// Lets go of every inode and open file in the directory `place` of the root, which was taken away: whatever the guest
    /// still asks of them is stale. Returns how many there were.
    ///
    /// # Errors
    /// When the library does not know an open file.
    pub fn let_go(&self, place: &[u8]) -> io::Result<u64> {
        let holding = self.0.budget.take(place);
        let nobody = Context {
            uid: 0.into(),
            gid: 0.into(),
            pid: 0,
        };
        let count = holding.inodes.len() + holding.handles.len();
        for (inode, handle) in holding.handles {
            let files = &self.0.files;
            files.release(nobody, inode, 0, handle, false, false, None)?;
        }
        for (inode, lookups) in holding.inodes {
            self.0.files.forget(nobody, inode, lookups);
        }
        Ok(count as u64)
    }

    pub(crate) fn is_scarce(&self) -> bool {
        #[cfg(test)]
        if tests::IS_UNBOUNDED.get() {
            return false;
        }
        self.0.budget.is_scarce()
    }

    pub(crate) fn check_write(&self) -> io::Result<()> {
        if self.0.is_readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    pub(crate) fn check_new(&self, name: &CStr) -> io::Result<()> {
        self.check_write()?;
        check_name(name)
    }

    pub(crate) fn check_open(&self, flags: u32) -> io::Result<()> {
        let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32 != libc::O_RDONLY as u32;
        if writes {
            self.check_write()
        } else {
            Ok(())
        }
    }

    /// A server that may not become somebody else cannot take on the groups of somebody else either.
    pub(crate) fn own_groups(&self, mut extensions: Extensions) -> Extensions {
        if !self.0.ids.is_host() {
            extensions.sup_gids.clear();
        }
        extensions
    }

    /// What is left of a change of attributes when owners cannot be changed.
    pub(crate) fn without_owner(
        &self,
        ctx: Context,
        inode: u64,
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

pub(crate) fn check_xattr(name: &CStr) -> io::Result<()> {
    if is_known_xattr(name.to_bytes()) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Devices give access to what the host is made of; 0:0 is the whiteout of an overlay and leads nowhere.
pub(crate) fn check_mknod(mode: u32, rdev: u32) -> io::Result<()> {
    match mode & libc::S_IFMT {
        libc::S_IFBLK => Err(io::Error::from_raw_os_error(libc::EPERM)),
        libc::S_IFCHR if rdev != 0 => Err(io::Error::from_raw_os_error(libc::EPERM)),
        _ => Ok(()),
    }
}

/// An entry of a listing without inode or attributes: the guest takes the name alone.
pub(crate) fn unnamed() -> Entry {
    absent(Duration::ZERO)
}

/// The answer for a name that does not exist.
pub(crate) fn missing() -> Entry {
    absent(ABSENCE)
}

fn absent(entry_timeout: Duration) -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: Duration::ZERO,
        entry_timeout,
    }
}

/// The extended attributes the guest may know of.
pub(crate) fn known_names(names: &[u8]) -> Vec<u8> {
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
