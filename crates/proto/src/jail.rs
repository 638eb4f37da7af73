//! The confinement of one process, as the warden is told it (`protocol/warden.md`).

use crate::codec::{CodecError, Reader, Result, Writer};

/// A uid or gid of a [`Jail`] that is left as it is.
pub const ID_KEEP: u32 = u32::MAX;
/// Most instructions of a classic BPF program (the kernel's BPF_MAXINSNS).
pub const MAX_BPF_INSTRUCTIONS: usize = 4096;

/// Bits of [`Jail::flags`].
pub mod jail_flags {
    /// Set no_new_privs.
    pub const NO_NEW_PRIVS: u32 = 1;
    /// Start a session of its own.
    pub const SETSID: u32 = 2;
    /// Make the process not dumpable.
    pub const NOT_DUMPABLE: u32 = 4;
    /// Keep the warden's root; `root` must be empty.
    pub const KEEP_ROOT: u32 = 8;
    /// Leave the new root's tmpfs writable.
    pub const ROOT_WRITABLE: u32 = 16;
    /// Every bit with a meaning.
    pub const ALL: u32 = 31;
}

/// Bits of the flags of [`RootOp::Bind`] and [`RootOp::BindFd`].
pub mod bind_flags {
    /// Mount read-only.
    pub const READ_ONLY: u32 = 1;
    /// Mount nosuid.
    pub const NOSUID: u32 = 2;
    /// Mount nodev.
    pub const NODEV: u32 = 4;
    /// Mount noexec.
    pub const NOEXEC: u32 = 8;
    /// Bind what is mounted below, too.
    pub const RECURSIVE: u32 = 16;
    /// A missing source is no error.
    pub const OPTIONAL: u32 = 32;
    /// Do not follow a symbolic link in the last component of the source.
    pub const NOFOLLOW: u32 = 64;
    /// Every bit with a meaning.
    pub const ALL: u32 = 127;
}

/// Bits of [`RootOp::Tmpfs`]'s flags.
pub mod tmpfs_flags {
    /// Huge pages, where the kernel has them, for mappings that ask for them by `madvise(2)`.
    pub const HUGE_PAGES: u32 = 1;
    /// Every bit with a meaning.
    pub const ALL: u32 = 1;
}

/// The `CLONE_NEW*` bits that [`Jail::namespaces`] may hold: mount, cgroup, uts, ipc, user, pid, net.
pub const NAMESPACE_BITS: u32 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit (`u64::MAX`: none).
    pub soft: u64,
    /// Hard limit (`u64::MAX`: none).
    pub hard: u64,
}

/// One operation of building a jail's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootOp {
    /// Makes a directory.
    Dir {
        /// Path inside the new root.
        path: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// Binds a path of the warden's tree.
    Bind {
        /// Path in the warden's mount namespace.
        source: Vec<u8>,
        /// Path inside the new root.
        path: Vec<u8>,
        /// Bits of [`bind_flags`].
        flags: u32,
    },
    /// Writes a file.
    File {
        /// Path inside the new root.
        path: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// What the file holds.
        content: Vec<u8>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What the link holds.
        target: Vec<u8>,
        /// Path inside the new root.
        path: Vec<u8>,
    },
    /// Mounts a tmpfs.
    Tmpfs {
        /// Path inside the new root.
        path: Vec<u8>,
        /// Size limit in bytes.
        size: u64,
        /// Permission bits of its root.
        mode: u32,
        /// Bits of [`tmpfs_flags`].
        flags: u32,
    },
    /// Mounts a proc file system.
    Proc {
        /// Path inside the new root.
        path: Vec<u8>,
    },
    /// Makes a minimal device directory.
    Dev {
        /// Path inside the new root.
        path: Vec<u8>,
    },
    /// Binds the packet's descriptor with that index, an `O_PATH` one.
    BindFd {
        /// Index into the packet's descriptors.
        fd_index: u32,
        /// Path inside the new root.
        path: Vec<u8>,
        /// Bits of [`bind_flags`].
        flags: u32,
    },
}

/// The confinement of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jail {
    /// `CLONE_NEW*` bits.
    pub namespaces: u32,
    /// User id taken on before the exec, or [`ID_KEEP`].
    pub uid: u32,
    /// Group id taken on before the exec, or [`ID_KEEP`].
    pub gid: u32,
    /// Capabilities left, one bit each.
    pub keep_caps: u64,
    /// Bits of [`jail_flags`].
    pub flags: u32,
    /// Host name in a uts namespace; empty: unchanged.
    pub hostname: Vec<u8>,
    /// Working directory inside the jail's root.
    pub cwd: Vec<u8>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// A classic BPF program (array of `struct sock_filter`), installed last; empty: none.
    pub seccomp: Vec<u8>,
    /// How the root is built.
    pub root: Vec<RootOp>,
}

impl Jail {
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            namespaces: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            keep_caps: r.u64()?,
            flags: r.u32()?,
            hostname: r.byte_vec()?,
            cwd: r.byte_vec()?,
            rlimits: r.list(20, |r| {
                Ok(Rlimit {
                    resource: r.u32()?,
                    soft: r.u64()?,
                    hard: r.u64()?,
                })
            })?,
            seccomp: r.byte_vec()?,
            root: r.list(5, RootOp::read)?,
        })
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.u32(self.namespaces).u32(self.uid).u32(self.gid);
        w.u64(self.keep_caps).u32(self.flags);
        w.bytes(&self.hostname).bytes(&self.cwd);
        w.list(&self.rlimits, |w, limit| {
            w.u32(limit.resource).u64(limit.soft).u64(limit.hard);
        });
        w.bytes(&self.seccomp);
        w.list(&self.root, |w, op| op.write(w));
    }

    pub(crate) fn check(&self) -> Result<()> {
        known_bits("namespaces", self.namespaces, NAMESPACE_BITS)?;
        known_bits("jail flags", self.flags, jail_flags::ALL)?;
        if self.flags & jail_flags::KEEP_ROOT != 0 && !self.root.is_empty() {
            return Err(CodecError::Invalid("root"));
        }
        if self.seccomp.len() % 8 != 0 || self.seccomp.len() / 8 > MAX_BPF_INSTRUCTIONS {
            return Err(CodecError::Invalid("seccomp"));
        }
        self.root.iter().try_for_each(RootOp::check)
    }
}

impl RootOp {
    fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(match r.u8()? {
            1 => Self::Dir {
                path: r.byte_vec()?,
                mode: r.u32()?,
            },
            2 => Self::Bind {
                source: r.byte_vec()?,
                path: r.byte_vec()?,
                flags: r.u32()?,
            },
            3 => Self::File {
                path: r.byte_vec()?,
                mode: r.u32()?,
                content: r.byte_vec()?,
            },
            4 => Self::Symlink {
                target: r.byte_vec()?,
                path: r.byte_vec()?,
            },
            5 => Self::Tmpfs {
                path: r.byte_vec()?,
                size: r.u64()?,
                mode: r.u32()?,
                flags: r.u32()?,
            },
            6 => Self::Proc {
                path: r.byte_vec()?,
            },
            7 => Self::Dev {
                path: r.byte_vec()?,
            },
            8 => Self::BindFd {
                fd_index: r.u32()?,
                path: r.byte_vec()?,
                flags: r.u32()?,
            },
            other => {
                return Err(CodecError::Unknown {
                    what: "root operation",
                    value: u64::from(other),
                })
            }
        })
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Dir { path, mode } => w.u8(1).bytes(path).u32(*mode),
            Self::Bind {
                source,
                path,
                flags,
            } => w.u8(2).bytes(source).bytes(path).u32(*flags),
            Self::File {
                path,
                mode,
                content,
            } => w.u8(3).bytes(path).u32(*mode).bytes(content),
            Self::Symlink { target, path } => w.u8(4).bytes(target).bytes(path),
            Self::Tmpfs {
                path,
                size,
                mode,
                flags,
            } => w.u8(5).bytes(path).u64(*size).u32(*mode).u32(*flags),
            Self::Proc { path } => w.u8(6).bytes(path),
            Self::Dev { path } => w.u8(7).bytes(path),
            Self::BindFd {
                fd_index,
                path,
                flags,
            } => w.u8(8).u32(*fd_index).bytes(path).u32(*flags),
        };
    }

    /// The path inside the new root that this operation makes.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            Self::Dir { path, .. }
            | Self::Bind { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::Tmpfs { path, .. }
            | Self::Proc { path }
            | Self::Dev { path }
            | Self::BindFd { path, .. } => path,
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Bind { flags, .. } | Self::BindFd { flags, .. } => {
                known_bits("bind flags", *flags, bind_flags::ALL)
            }
            Self::Tmpfs { flags, .. } => known_bits("tmpfs flags", *flags, tmpfs_flags::ALL),
            _ => Ok(()),
        }
    }
}

fn known_bits(what: &'static str, value: u32, allowed: u32) -> Result<()> {
    if value & !allowed == 0 {
        Ok(())
    } else {
        Err(CodecError::Unknown {
            what,
            value: u64::from(value & !allowed),
        })
    }
}
