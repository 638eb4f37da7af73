//! Messages between the supervisor and the warden (`protocol/warden.md`). One message is one packet.

use crate::codec::{CodecError, Reader, Result, Writer};
pub use crate::jail::{
    bind_flags, jail_flags, tmpfs_flags, Jail, Rlimit, RootOp, ID_KEEP, MAX_BPF_INSTRUCTIONS,
    NAMESPACE_BITS,
};

/// Largest packet in bytes.
pub const MAX_PACKET: usize = 192 * 1024;
/// Most descriptors that may travel with one packet.
pub const MAX_DESCRIPTORS: usize = 64;
/// An entry of [`Spawn::fds`] for a descriptor that is only named by [`RootOp::BindFd`].
pub const FD_UNNAMED: u32 = u32::MAX;
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
    /// One more descriptor, behind those of `fds`, is the directory of the cgroup that the process starts in.
    pub cgroup: bool,
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
    /// Mount what the packet's descriptor refers to in the tree of a running process.
    Mount {
        /// The supervisor's number for this request.
        request: u32,
        /// Number given with SPAWN.
        id: u32,
        /// Where: a new directory in one of the root's own.
        path: Vec<u8>,
        /// [`bind_flags`]: `READ_ONLY`, `NOSUID`, `NODEV`, `NOEXEC`, `RECURSIVE`.
        flags: u32,
    },
    /// Take away what MOUNT has put there.
    Unmount {
        /// The supervisor's number for this request.
        request: u32,
        /// Number given with SPAWN.
        id: u32,
        /// Where.
        path: Vec<u8>,
    },
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
    /// A MOUNT or UNMOUNT has been carried out, or has failed.
    Done {
        /// Number given with the request.
        request: u32,
        /// The error number; 0: it was carried out.
        errno: u32,
        /// The step that failed.
        what: Vec<u8>,
    },
}

const SPAWN: u8 = 1;
const KILL: u8 = 2;
const SHUTDOWN: u8 = 3;
const MOUNT: u8 = 4;
const UNMOUNT: u8 = 5;
const READY: u8 = 65;
const SPAWNED: u8 = 66;
const FAILED: u8 = 67;
const EXITED: u8 = 68;
const DONE: u8 = 69;
/// The flags of a MOUNT.
const MOUNT_FLAGS: u32 = bind_flags::READ_ONLY
    | bind_flags::NOSUID
    | bind_flags::NODEV
    | bind_flags::NOEXEC
    | bind_flags::RECURSIVE;

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
            MOUNT => Self::Mount {
                request: r.u32()?,
                id: r.u32()?,
                path: r.byte_vec()?,
                flags: match r.u32()? {
                    flags if flags & !MOUNT_FLAGS == 0 => flags,
                    _ => return Err(CodecError::Invalid("flags")),
                },
            },
            UNMOUNT => Self::Unmount {
                request: r.u32()?,
                id: r.u32()?,
                path: r.byte_vec()?,
            },
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
            Self::Mount {
                request,
                id,
                path,
                flags,
            } => {
                if flags & !MOUNT_FLAGS != 0 {
                    return Err(CodecError::Invalid("flags"));
                }
                w.u8(MOUNT).u32(*request).u32(*id);
                w.bytes(path).u32(*flags);
            }
            Self::Unmount { request, id, path } => {
                w.u8(UNMOUNT).u32(*request).u32(*id).bytes(path);
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
            DONE => Self::Done {
                request: r.u32()?,
                errno: r.u32()?,
                what: r.byte_vec()?,
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
            Self::Done {
                request,
                errno,
                what,
            } => w.u8(DONE).u32(*request).u32(*errno).bytes(what),
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
            exe_fd: read_switch(r, "exe_fd")?,
            cgroup: read_switch(r, "cgroup")?,
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
        w.u8(u8::from(self.exe_fd)).u8(u8::from(self.cgroup));
        self.jail.write(w);
    }

    /// How many descriptors must travel with the packet.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let more = usize::from(self.exe_fd).saturating_add(usize::from(self.cgroup));
        self.fds.len().saturating_add(more)
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

fn read_switch(r: &mut Reader<'_>, name: &'static str) -> Result<bool> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(CodecError::Invalid(name)),
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
            cgroup: true,
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
