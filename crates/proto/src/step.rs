//! The steps of SETUP (`protocol/README.md`, section 5).

use crate::codec::{CodecError, Reader, Result, Writer};
use crate::message::MAX_TO_AGENT;

/// One step of a SETUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Binds a platform device to the virtio-mmio driver.
    BindDevice {
        /// Name of the device, like `virtio-mmio.6`.
        name: Vec<u8>,
    },
    /// Makes a directory and its missing parents.
    Mkdir {
        /// The directory.
        path: Vec<u8>,
        /// Permission bits of the last one.
        mode: u32,
        /// Owner of the last one.
        uid: u32,
        /// Group of the last one.
        gid: u32,
    },
    /// mount(2).
    Mount {
        /// File system type; empty: none.
        fstype: Vec<u8>,
        /// Source.
        source: Vec<u8>,
        /// Where.
        target: Vec<u8>,
        /// `MS_*` bits.
        flags: u64,
        /// Options; empty: none.
        data: Vec<u8>,
    },
    /// Makes a directory the root, and moves /dev, /proc, /sys and /run there.
    SwitchRoot {
        /// The new root.
        path: Vec<u8>,
    },
    /// Creates or replaces a file.
    WriteFile {
        /// The file.
        path: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// What it holds.
        content: Vec<u8>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What the link holds.
        target: Vec<u8>,
        /// The link.
        path: Vec<u8>,
    },
    /// Copies what is in a directory.
    CopyTree {
        /// The directory copied.
        from: Vec<u8>,
        /// The directory copied into.
        to: Vec<u8>,
        /// Owner of the copies.
        uid: u32,
        /// Group of the copies.
        gid: u32,
    },
    /// Sets the host name.
    Hostname {
        /// The name.
        name: Vec<u8>,
    },
    /// Sets the clock.
    Clock {
        /// Nanoseconds since 1970.
        realtime_ns: u64,
    },
    /// Mixes a seed into the kernel's random numbers.
    Entropy {
        /// The seed, fully credited.
        seed: Vec<u8>,
    },
    /// Brings `lo` up.
    Loopback,
    /// Writes a kernel setting.
    Sysctl {
        /// Path below /proc/sys.
        path: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Sets a resource limit for every program started later.
    Rlimit {
        /// `RLIMIT_*` number.
        resource: u32,
        /// Soft limit (`u64::MAX`: none).
        soft: u64,
        /// Hard limit (`u64::MAX`: none).
        hard: u64,
    },
    /// Waits until a path exists.
    WaitPath {
        /// The path.
        path: Vec<u8>,
        /// Longest wait in milliseconds.
        timeout_ms: u32,
    },
    /// Gives a network card an IPv4 address and the default route, and brings it up.
    Interface {
        /// The card's name, like `eth0`.
        name: Vec<u8>,
        /// Its address, the highest byte first.
        address: u32,
        /// How many bits of it are those of its network.
        prefix: u32,
        /// Who is sent what is for nobody there.
        gateway: u32,
    },
    /// umount2(2).
    Unmount {
        /// Where.
        target: Vec<u8>,
        /// `MNT_*` and `UMOUNT_*` bits.
        flags: u32,
    },
    /// Lets every program stand still.
    Freeze,
    /// Lets them go on.
    Thaw,
    /// Copies a directory under a name of its own, unless something has that name; all of it is there, or nothing.
    CopyOnce {
        /// The directory copied.
        from: Vec<u8>,
        /// The copy.
        to: Vec<u8>,
        /// Owner of the copies.
        uid: u32,
        /// Group of the copies.
        gid: u32,
    },
    /// Writes back all of the file system at a path and lets nothing more be written to it: on its disk it is as if
    /// it were not mounted.
    Settle {
        /// Where it is mounted.
        path: Vec<u8>,
    },
    /// Fails unless a directory is found below another one without a symbolic link on the way.
    CheckPlace {
        /// The directory that is gone out from, links allowed.
        root: Vec<u8>,
        /// The way from there.
        path: Vec<u8>,
    },
    /// Puts lines before what a file holds; one that is missing is made.
    PutFirst {
        /// Where.
        path: Vec<u8>,
        /// Permission bits of one that is made.
        mode: u32,
        /// What comes first.
        content: Vec<u8>,
    },
}

impl Step {
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self> {
        let op = r.u8()?;
        let mut r = Reader::new(r.bytes()?);
        let step = match op {
            1 => Self::BindDevice {
                name: r.byte_vec()?,
            },
            2 => Self::Mkdir {
                path: r.byte_vec()?,
                mode: r.u32()?,
                uid: r.u32()?,
                gid: r.u32()?,
            },
            3 => Self::Mount {
                fstype: r.byte_vec()?,
                source: r.byte_vec()?,
                target: r.byte_vec()?,
                flags: r.u64()?,
                data: r.byte_vec()?,
            },
            4 => Self::SwitchRoot {
                path: r.byte_vec()?,
            },
            5 => Self::WriteFile {
                path: r.byte_vec()?,
                mode: r.u32()?,
                uid: r.u32()?,
                gid: r.u32()?,
                content: r.byte_vec()?,
            },
            6 => Self::Symlink {
                target: r.byte_vec()?,
                path: r.byte_vec()?,
            },
            7 => Self::CopyTree {
                from: r.byte_vec()?,
                to: r.byte_vec()?,
                uid: r.u32()?,
                gid: r.u32()?,
            },
            8 => Self::Hostname {
                name: r.byte_vec()?,
            },
            9 => Self::Clock {
                realtime_ns: r.u64()?,
            },
            10 => Self::Entropy {
                seed: r.byte_vec()?,
            },
            11 => Self::Loopback,
            12 => Self::Sysctl {
                path: r.byte_vec()?,
                value: r.byte_vec()?,
            },
            13 => Self::Rlimit {
                resource: r.u32()?,
                soft: r.u64()?,
                hard: r.u64()?,
            },
            14 => Self::WaitPath {
                path: r.byte_vec()?,
                timeout_ms: r.u32()?,
            },
            15 => Self::Unmount {
                target: r.byte_vec()?,
                flags: r.u32()?,
            },
            16 => Self::Interface {
                name: r.byte_vec()?,
                address: r.u32()?,
                prefix: r.u32()?,
                gateway: r.u32()?,
            },
            17 => Self::Freeze,
            18 => Self::Thaw,
            19 => Self::CopyOnce {
                from: r.byte_vec()?,
                to: r.byte_vec()?,
                uid: r.u32()?,
                gid: r.u32()?,
            },
            20 => Self::Settle {
                path: r.byte_vec()?,
            },
            21 => Self::CheckPlace {
                root: r.byte_vec()?,
                path: r.byte_vec()?,
            },
            22 => Self::PutFirst {
                path: r.byte_vec()?,
                mode: r.u32()?,
                content: r.byte_vec()?,
            },
            other => {
                return Err(CodecError::Unknown {
                    what: "step",
                    value: u64::from(other),
                })
            }
        };
        r.finish()?;
        Ok(step)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        let mut body = Writer::new(MAX_TO_AGENT);
        let op = self.write_body(&mut body);
        match body.finish() {
            Ok(body) => w.u8(op).bytes(&body),
            Err(_) => w.overflow(),
        };
    }

    fn write_body(&self, w: &mut Writer) -> u8 {
        match self {
            Self::BindDevice { name } => (1, w.bytes(name)).0,
            Self::Mkdir {
                path,
                mode,
                uid,
                gid,
            } => (2, w.bytes(path).u32(*mode).u32(*uid).u32(*gid)).0,
            Self::Mount {
                fstype,
                source,
                target,
                flags,
                data,
            } => {
                w.bytes(fstype).bytes(source).bytes(target);
                w.u64(*flags).bytes(data);
                3
            }
            Self::SwitchRoot { path } => (4, w.bytes(path)).0,
            Self::WriteFile {
                path,
                mode,
                uid,
                gid,
                content,
            } => {
                w.bytes(path).u32(*mode).u32(*uid).u32(*gid);
                w.bytes(content);
                5
            }
            Self::Symlink { target, path } => (6, w.bytes(target).bytes(path)).0,
            Self::CopyTree { from, to, uid, gid } => {
                (7, w.bytes(from).bytes(to).u32(*uid).u32(*gid)).0
            }
            Self::Hostname { name } => (8, w.bytes(name)).0,
            Self::Clock { realtime_ns } => (9, w.u64(*realtime_ns)).0,
            Self::Entropy { seed } => (10, w.bytes(seed)).0,
            Self::Loopback => 11,
            Self::Sysctl { path, value } => (12, w.bytes(path).bytes(value)).0,
            Self::Rlimit {
                resource,
                soft,
                hard,
            } => (13, w.u32(*resource).u64(*soft).u64(*hard)).0,
            Self::WaitPath { path, timeout_ms } => (14, w.bytes(path).u32(*timeout_ms)).0,
            Self::Unmount { target, flags } => (15, w.bytes(target).u32(*flags)).0,
            Self::Interface {
                name,
                address,
                prefix,
                gateway,
            } => {
                w.bytes(name).u32(*address).u32(*prefix).u32(*gateway);
                16
            }
            Self::Freeze => 17,
            Self::Thaw => 18,
            Self::CopyOnce { from, to, uid, gid } => {
                (19, w.bytes(from).bytes(to).u32(*uid).u32(*gid)).0
            }
            Self::Settle { path } => (20, w.bytes(path)).0,
            Self::CheckPlace { root, path } => (21, w.bytes(root).bytes(path)).0,
            Self::PutFirst {
                path,
                mode,
                content,
            } => (22, w.bytes(path).u32(*mode).bytes(content)).0,
        }
    }
}
