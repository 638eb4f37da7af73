//! Messages between the supervisor and the warden (`protocol/warden.md`). One message is one packet.

use crate::codec::{CodecError, Reader, Result, Writer};

/// Largest packet in bytes.
pub const MAX_PACKET: usize = 192 * 1024;
/// Most descriptors that may travel with one packet.
pub const MAX_DESCRIPTORS: usize = 64;
/// An entry of [`Spawn::fds`] for a descriptor that is only named by [`RootOp::BindFd`].
pub const FD_UNNAMED: u32 = u32::MAX;
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

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    /// The supervisor's number for this process.
    pub id: u32,
    /// A word for error messages.
    pub name: Vec<u8>,
    /// Arguments, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// The k-th descriptor of the packet becomes this number; [`FD_UNNAMED`] for one that is only bound.
    pub fds: Vec<u32>,
    /// One more descriptor, the last, is the program itself.
    pub exe_fd: bool,
    /// How the process is confined.
    pub jail: Jail,
}

/// A message to the warden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWarden {
    /// Start a process.
    Spawn(Box<Spawn>),
    /// Send a signal to a process.
    Kill {
        /// Number given with SPAWN.
        id: u32,
        /// Signal number.
        signo: u32,
    },
    /// End PID 1 and everything with it.
    Shutdown,
}

/// A message to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSupervisor {
    /// The warden's PID 1 is listening.
    Ready,
    /// A process was started; its pidfd travels with the packet.
    Spawned {
        /// Number given with SPAWN.
        id: u32,
        /// Process id in the warden's pid namespace.
        pid: u32,
    },
    /// A process could not be started, or a message not be carried out.
    Failed {
        /// Number given with SPAWN.
        id: u32,
        /// The error number.
        errno: u32,
        /// The step that failed.
        what: Vec<u8>,
    },
    /// A process ended.
    Exited {
        /// Number given with SPAWN.
        id: u32,
        /// 0: exit status, 1: signal.
        kind: u8,
        /// Status or signal number.
        value: u32,
    },
}

const SPAWN: u8 = 1;
const KILL: u8 = 2;
const SHUTDOWN: u8 = 3;
const READY: u8 = 65;
const SPAWNED: u8 = 66;
const FAILED: u8 = 67;
const EXITED: u8 = 68;

impl ToWarden {
    /// Decodes one packet.
    ///
    /// # Errors
    /// [`CodecError`] when the packet is not exactly one well-formed message.
    pub fn decode(packet: &[u8]) -> Result<Self> {
        let mut r = packet_reader(packet)?;
        let message = match r.u8()? {
            SPAWN => Self::Spawn(Box::new(Spawn::read(&mut r)?)),
            KILL => Self::Kill {
                id: r.u32()?,
                signo: r.u32()?,
            },
            SHUTDOWN => Self::Shutdown,
            other => return Err(unknown("message type", other)),
        };
        r.finish()?;
        Ok(message)
    }

    /// Encodes one packet.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] past [`MAX_PACKET`]; [`CodecError::Invalid`] and [`CodecError::Unknown`] when a field
    /// holds what a decoder would refuse.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new(MAX_PACKET);
        match self {
            Self::Spawn(spawn) => {
                spawn.check()?;
                w.u8(SPAWN);
                spawn.write(&mut w);
            }
            Self::Kill { id, signo } => {
                w.u8(KILL).u32(*id).u32(*signo);
            }
            Self::Shutdown => {
                w.u8(SHUTDOWN);
            }
        }
        w.finish()
    }
}

impl ToSupervisor {
    /// Decodes one packet.
    ///
    /// # Errors
    /// [`CodecError`] when the packet is not exactly one well-formed message.
    pub fn decode(packet: &[u8]) -> Result<Self> {
        let mut r = packet_reader(packet)?;
        let message = match r.u8()? {
            READY => Self::Ready,
            SPAWNED => Self::Spawned {
                id: r.u32()?,
                pid: r.u32()?,
            },
            FAILED => Self::Failed {
                id: r.u32()?,
                errno: r.u32()?,
                what: r.byte_vec()?,
            },
            EXITED => Self::Exited {
                id: r.u32()?,
                kind: match r.u8()? {
                    kind @ 0..=1 => kind,
                    other => return Err(unknown("kind of end", other)),
                },
                value: r.u32()?,
            },
            other => return Err(unknown("message type", other)),
        };
        r.finish()?;
        Ok(message)
    }

    /// Encodes one packet.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] past [`MAX_PACKET`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new(MAX_PACKET);
        match self {
            Self::Ready => w.u8(READY),
            Self::Spawned { id, pid } => w.u8(SPAWNED).u32(*id).u32(*pid),
            Self::Failed { id, errno, what } => w.u8(FAILED).u32(*id).u32(*errno).bytes(what),
            Self::Exited { id, kind, value } => w.u8(EXITED).u32(*id).u8(*kind).u32(*value),
        };
        w.finish()
    }
}

impl Spawn {
    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let spawn = Self {
            id: r.u32()?,
            name: r.byte_vec()?,
            argv: r.list(4, Reader::byte_vec)?,
            env: r.list(4, Reader::byte_vec)?,
            fds: r.list(4, Reader::u32)?,
            exe_fd: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(CodecError::Invalid("exe_fd")),
            },
            jail: Jail::read(r)?,
        };
        spawn.check()?;
        Ok(spawn)
    }

    fn write(&self, w: &mut Writer) {
        w.u32(self.id).bytes(&self.name);
        w.list(&self.argv, |w, arg| {
            w.bytes(arg);
        });
        w.list(&self.env, |w, entry| {
            w.bytes(entry);
        });
        w.list(&self.fds, |w, fd| {
            w.u32(*fd);
        });
        w.u8(u8::from(self.exe_fd));
        self.jail.write(w);
    }

    /// How many descriptors must travel with the packet.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.fds.len().saturating_add(usize::from(self.exe_fd))
    }

    fn check(&self) -> Result<()> {
        if self.argv.is_empty() {
            return Err(CodecError::Invalid("argv"));
        }
        if self.descriptors() > MAX_DESCRIPTORS {
            return Err(CodecError::Invalid("fds"));
        }
        self.jail.check()?;
        for op in &self.jail.root {
            if let RootOp::BindFd { fd_index, .. } = op {
                if self.fds.get(*fd_index as usize) != Some(&FD_UNNAMED) {
                    return Err(CodecError::Invalid("fd_index"));
                }
            }
        }
        Ok(())
    }
}

impl Jail {
    fn read(r: &mut Reader<'_>) -> Result<Self> {
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

    fn write(&self, w: &mut Writer) {
        w.u32(self.namespaces).u32(self.uid).u32(self.gid);
        w.u64(self.keep_caps).u32(self.flags);
        w.bytes(&self.hostname).bytes(&self.cwd);
        w.list(&self.rlimits, |w, limit| {
            w.u32(limit.resource).u64(limit.soft).u64(limit.hard);
        });
        w.bytes(&self.seccomp);
        w.list(&self.root, |w, op| op.write(w));
    }

    fn check(&self) -> Result<()> {
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
            other => return Err(unknown("root operation", other)),
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
            Self::Tmpfs { path, size, mode } => w.u8(5).bytes(path).u64(*size).u32(*mode),
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
            _ => Ok(()),
        }
    }
}

fn packet_reader(packet: &[u8]) -> Result<Reader<'_>> {
    if packet.len() > MAX_PACKET {
        return Err(CodecError::TooLong { limit: MAX_PACKET });
    }
    Ok(Reader::new(packet))
}

fn unknown(what: &'static str, value: u8) -> CodecError {
    CodecError::Unknown {
        what,
        value: u64::from(value),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn() -> Spawn {
        Spawn {
            id: 1,
            name: b"fs".to_vec(),
            argv: vec![b"virtiofsd".to_vec(), b"--fd=3".to_vec()],
            env: vec![b"A=b".to_vec()],
            fds: vec![0, 1, 2, FD_UNNAMED, 3],
            exe_fd: true,
            jail: Jail {
                namespaces: NAMESPACE_BITS,
                uid: ID_KEEP,
                gid: 5,
                keep_caps: 1 << 40,
                flags: jail_flags::NO_NEW_PRIVS,
                hostname: b"h".to_vec(),
                cwd: b"/".to_vec(),
                rlimits: vec![Rlimit {
                    resource: 7,
                    soft: 1,
                    hard: 2,
                }],
                seccomp: vec![6; 8],
                root: vec![
                    RootOp::Proc {
                        path: b"/proc".to_vec(),
                    },
                    RootOp::BindFd {
                        fd_index: 3,
                        path: b"/x".to_vec(),
                        flags: bind_flags::READ_ONLY,
                    },
                ],
            },
        }
    }

    /// Every proper prefix of a message, and a message with one byte more, is refused.
    #[test]
    fn cut_and_trailing_bytes_are_refused() {
        let bytes = ToWarden::Spawn(Box::new(spawn())).encode().unwrap();
        for end in 0..bytes.len() {
            assert!(ToWarden::decode(&bytes[..end]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(ToWarden::decode(&longer), Err(CodecError::Trailing));
        assert!(ToWarden::decode(&bytes).is_ok());
    }

    /// A message that a decoder would refuse cannot be encoded either.
    #[test]
    fn invalid_fields_are_refused_both_ways() {
        let broken: [fn(&mut Spawn); 6] = [
            |s| s.argv.clear(),
            |s| s.fds = vec![0; 64],
            |s| s.jail.namespaces = 1,
            |s| s.jail.flags = jail_flags::KEEP_ROOT,
            |s| s.jail.seccomp = vec![0; 7],
            |s| s.fds[3] = 9,
        ];
        for change in broken {
            let mut one = spawn();
            change(&mut one);
            let mut w = Writer::new(MAX_PACKET);
            w.u8(SPAWN);
            one.write(&mut w);
            assert!(ToWarden::decode(&w.finish().unwrap()).is_err());
            assert!(ToWarden::Spawn(Box::new(one)).encode().is_err());
        }
    }
}
