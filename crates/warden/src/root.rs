//! The root of a jail: a small tmpfs and what is mounted and made on it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cloche_proto::warden::{bind_flags, jail_flags, tmpfs_flags, Jail, RootOp};

use crate::failure::{Failure, Outcome, Step};
use crate::sys::{self, Errno};

/// Where the new root is built and where the host's tree waits, in the tmpfs they share for that time.
const NEW: &CStr = c"new";
const OLD: &CStr = c"old";
const BASE_SIZE: &[u8] = b"65536";
const ROOT_SIZE: &[u8] = b"8388608";
const DEV_SIZE: &[u8] = b"65536";
const SHM_SIZE: &[u8] = b"67108864";
/// Most files on one tmpfs, because each costs kernel memory that its size does not count.
const MOST_INODES: &CStr = c"65536";
/// Device files bound from the host, all of them harmless.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEV_LINKS: [(&[u8], &str); 5] = [
    (b"/proc/self/fd", "fd"),
    (b"/proc/self/fd/0", "stdin"),
    (b"/proc/self/fd/1", "stdout"),
    (b"/proc/self/fd/2", "stderr"),
    (b"pts/ptmx", "ptmx"),
];
const CAP_SETFCAP: u64 = 1 << 31;
const NOTHING_SPECIAL: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Builds the root of `jail` in the calling process's own mount namespace and moves into it. `own_process` is the
/// process's directory in the host's /proc.
///
/// # Errors
/// When an operation fails; `what` names it and its paths.
pub fn build(jail: &Jail, fds: &[OwnedFd], own_process: &OwnedFd) -> Outcome {
    sys::umask(0);
    let host = open_directory(c"/")?;
    step_aside(&host)?;
    let (top, device) = new_tmpfs(ROOT_SIZE, 0o755, Pages::Small).step("mount the root")?;
    let place = open_directory(NEW)?;
    sys::attach_mount(top.as_fd(), place.as_fd()).step("mount the root")?;
    let mut root = Root {
        top,
        host,
        own: vec![device],
        owner: (jail.uid, jail.gid),
        whole_proc: sys::ids().0 != 0 || jail.keep_caps & CAP_SETFCAP != 0,
        devices: Vec::new(),
    };
    for op in &jail.root {
        root.apply(op, fds, own_process)?;
    }
    for dev in &root.devices {
        sys::add_mount_attributes(dev.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
            .step("make the devices read-only")?;
    }
    let writable = jail.flags & jail_flags::ROOT_WRITABLE != 0;
    let read_only = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
    sys::add_mount_attributes(root.top.as_fd(), read_only, false)
        .step("make the root read-only")?;
    sys::fchdir(root.top.as_fd()).step("enter the root")?;
    // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")") and is taken away with all in it.
    sys::pivot_root(c".", c".").step("pivot to the root")?;
    sys::detach_mount(c".").step("leave the old root")
}

/// Moves the host's tree below a tmpfs, beside the place of the new root: whatever is bound from the host, the whole
/// tree with all its mounts too, does not hold the new root itself.
fn step_aside(host: &OwnedFd) -> Outcome {
    let what = "put the host's tree aside";
    let (base, _) = new_tmpfs(BASE_SIZE, 0o700, Pages::Small).step(what)?;
    sys::attach_mount(base.as_fd(), host.as_fd()).step(what)?;
    for name in [NEW, OLD] {
        sys::mkdir_at(base.as_fd(), name, 0o700).step(what)?;
    }
    sys::fchdir(base.as_fd()).step(what)?;
    sys::pivot_root(c".", OLD).step(what)
}

struct Root {
    top: OwnedFd,
    /// The root of the host's tree.
    host: OwnedFd,
    /// Devices of the tmpfs mounts made here: only on these are files made, never on what was bound from the host.
    own: Vec<u64>,
    /// User and group the process will have: whose the file systems made for it are.
    owner: (u32, u32),
    /// Whether a /proc shows more than processes. Most of /proc/sys, sysrq-trigger and others ask for root's user id
    /// and for no capability, so a process of root's must not have them. The exception is a process that is to make
    /// user namespaces (for root that takes CAP_SETFCAP): the kernel lets them have a /proc only where a whole one is.
    whole_proc: bool,
    /// The device directories, made read-only when everything is in its place: a later BIND may add a device.
    devices: Vec<OwnedFd>,
}

impl Root {
    fn apply(&mut self, op: &RootOp, fds: &[OwnedFd], own_process: &OwnedFd) -> Outcome {
        let path = Path::new(op.path())?;
        match op {
            RootOp::Dir { mode, .. } => self.make_directory(&path, *mode),
            RootOp::Bind { source, flags, .. } => self.bind(source, &path, *flags),
            RootOp::File { mode, content, .. } => self.write_file(&path, *mode, content),
            RootOp::Symlink { target, .. } => self.link(target, &path),
            RootOp::Tmpfs {
                size, mode, flags, ..
            } => {
                let size = size.to_string();
                let pages = Pages::of(*flags);
                let mount =
                    self.mount_tmpfs(&path, size.as_bytes(), *mode, NOTHING_SPECIAL, pages)?;
                let (uid, gid) = self.owner;
                // An id that is to be kept is the one it has already: both are written the same way.
                sys::chown(mount.as_fd(), uid, gid).step(path.what("give away "))
            }
            RootOp::Proc { .. } => self.mount_proc(&path),
            RootOp::Dev { .. } => self.mount_dev(&path),
            RootOp::BindFd {
                fd_index, flags, ..
            } => {
                let what = path.what("bind a descriptor to ");
                let fd = usize::try_from(*fd_index)
                    .ok()
                    .and_then(|index| fds.get(index));
                let fd = fd.ok_or_else(|| Failure::new(what.as_slice(), Errno(libc::EBADF)))?;
                let source = reopen(fd.as_fd(), &self.host, own_process).step(what.as_slice())?;
                self.bind_opened(source.as_fd(), &path, *flags, &what)
            }
        }
    }

    fn make_directory(&self, path: &Path<'_>, mode: u32) -> Outcome {
        let what = path.what("make directory ");
        let fd = self.directory(path)?;
        if !self.is_own(fd.as_fd()).step(what.as_slice())? {
            // It exists in what was bound, and is used as it is.
            return Ok(());
        }
        let fd = sys::open_at(fd.as_raw_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0);
        fd.and_then(|fd| sys::chmod(fd.as_fd(), mode & 0o7777))
            .step(what)
    }

    fn write_file(&self, path: &Path<'_>, mode: u32, content: &[u8]) -> Outcome {
        let what = path.what("write ");
        let (parent, name) = self.parent(path)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let fd = sys::open_at(parent.as_raw_fd(), &name, flags, 0o600).step(what.as_slice())?;
        sys::write_all(fd.as_fd(), content).step(what.as_slice())?;
        sys::chmod(fd.as_fd(), mode & 0o7777).step(what)
    }

    fn link(&self, target: &[u8], path: &Path<'_>) -> Outcome {
        let what = path.what("link ");
        let target = sys::c_string(target).step(what.as_slice())?;
        let (parent, name) = self.parent(path)?;
        sys::symlink_at(&target, parent.as_fd(), &name).step(what)
    }

    fn bind(&self, source: &[u8], path: &Path<'_>, flags: u32) -> Outcome {
        let what = path.what_two("bind ", source);
        if source.first() != Some(&b'/') {
            return Err(Failure::new(what, Errno(libc::EINVAL)));
        }
        let nofollow = if flags & bind_flags::NOFOLLOW != 0 {
            libc::O_NOFOLLOW
        } else {
            0
        };
        let name = sys::c_string(source).step(what.as_slice())?;
        match sys::open_in_root(self.host.as_fd(), &name, libc::O_PATH | nofollow) {
            Err(Errno(libc::ENOENT | libc::ENOTDIR)) if flags & bind_flags::OPTIONAL != 0 => Ok(()),
            Err(errno) => Err(Failure::new(what, errno)),
            Ok(fd) => self.bind_opened(fd.as_fd(), path, flags, &what),
        }
    }

    fn bind_opened(
        &self,
        source: BorrowedFd<'_>,
        path: &Path<'_>,
        flags: u32,
        what: &[u8],
    ) -> Outcome {
        let (mount, is_directory) = copy_mount(source, flags).step(what)?;
        self.attach(&mount, path, is_directory, what)
    }

    fn mount_tmpfs(
        &mut self,
        path: &Path<'_>,
        size: &[u8],
        mode: u32,
        attributes: u64,
        pages: Pages,
    ) -> Outcome<OwnedFd> {
        let what = path.what("mount tmpfs ");
        let (mount, device) = new_tmpfs(size, mode, pages).step(what.as_slice())?;
        sys::add_mount_attributes(mount.as_fd(), attributes, false).step(what.as_slice())?;
        self.attach(&mount, path, true, &what)?;
        self.own.push(device);
        Ok(mount)
    }

    fn mount_proc(&self, path: &Path<'_>) -> Outcome {
        let attributes = NOTHING_SPECIAL | libc::MOUNT_ATTR_NOEXEC;
        let mut what = path.what("mount proc ");
        let only_processes = [(c"subset", c"pid")];
        let parameters = if self.whole_proc {
            [].as_slice()
        } else {
            &only_processes
        };
        let mount = sys::new_mount(c"proc", parameters, None, attributes).map_err(|errno| {
            if errno == Errno(libc::EPERM) {
                // The kernel gives a user namespace no view of /proc that shows more than the one it came from.
                what.extend_from_slice(b" (parts of the host's /proc are covered by other mounts)");
            }
            Failure::new(what.as_slice(), errno)
        })?;
        self.attach(&mount, path, true, &what)
    }

    fn mount_dev(&mut self, path: &Path<'_>) -> Outcome {
        let dev = self.mount_tmpfs(
            path,
            DEV_SIZE,
            0o755,
            NOTHING_SPECIAL | libc::MOUNT_ATTR_NOEXEC,
            Pages::Small,
        )?;
        for name in DEVICES {
            let source = [b"/dev/", name.as_bytes()].concat();
            let flags = bind_flags::NOSUID | bind_flags::NOEXEC;
            self.bind(&source, &Path::new(&path.below(name))?, flags)?;
        }
        for (target, name) in DEV_LINKS {
            self.link(target, &Path::new(&path.below(name))?)?;
        }
        let pts_path = path.below("pts");
        let pts_path = Path::new(&pts_path)?;
        let what = pts_path.what("mount devpts ");
        let parameters = [(c"ptmxmode", c"0666"), (c"mode", c"0620")];
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        let pts = sys::new_mount(c"devpts", &parameters, None, attributes).step(what.as_slice())?;
        self.attach(&pts, &pts_path, true, &what)?;
        self.mount_tmpfs(
            &Path::new(&path.below("shm"))?,
            SHM_SIZE,
            0o1777,
            NOTHING_SPECIAL,
            Pages::Small,
        )?;
        self.devices.push(dev);
        Ok(())
    }

    fn attach(&self, mount: &OwnedFd, path: &Path<'_>, directory: bool, what: &[u8]) -> Outcome {
        let target = self.mount_point(path, directory)?;
        sys::attach_mount(mount.as_fd(), target.as_fd()).step(what)
    }

    /// What `path` leads to, made as a directory or an empty file when it is missing.
    fn mount_point(&self, path: &Path<'_>, directory: bool) -> Outcome<OwnedFd> {
        if directory {
            return self.directory(path);
        }
        let what = path.what("make ");
        match sys::open_in_root(
            self.top.as_fd(),
            &path.name().step(what.as_slice())?,
            libc::O_PATH,
        ) {
            Err(Errno(libc::ENOENT)) => {
                let (parent, name) = self.parent(path)?;
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                sys::open_at(parent.as_raw_fd(), &name, flags, 0o644).step(what)
            }
            result => result.step(what),
        }
    }

    /// The directory `path`, made with what is missing above it.
    fn directory(&self, path: &Path<'_>) -> Outcome<OwnedFd> {
        let what = path.what("make directory ");
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match sys::open_in_root(self.top.as_fd(), &path.name().step(what.as_slice())?, flags) {
            Err(Errno(libc::ENOENT)) => {
                let (parent, name) = self.parent(path)?;
                sys::mkdir_at(parent.as_fd(), &name, 0o755).step(what.as_slice())?;
                sys::open_at(parent.as_raw_fd(), &name, flags | libc::O_NOFOLLOW, 0).step(what)
            }
            result => result.step(what),
        }
    }

    /// The directory above `path`, on one of our own tmpfs, and the last name of `path`.
    fn parent(&self, path: &Path<'_>) -> Outcome<(OwnedFd, CString)> {
        let what = path.what("make ");
        let (above, name) = path.split().step(what.as_slice())?;
        let parent = self.directory(&above)?;
        if self.is_own(parent.as_fd()).step(what.as_slice())? {
            Ok((parent, sys::c_string(name).step(what)?))
        } else {
            Err(Failure::new(
                [&what, b" in what was bound".as_slice()].concat(),
                Errno(libc::EROFS),
            ))
        }
    }

    fn is_own(&self, fd: BorrowedFd<'_>) -> sys::Result<bool> {
        sys::stat(fd).map(|(device, _, _)| self.own.contains(&device))
    }
}

/// Opens what `fd` refers to once more, through this mount namespace, whose root `host` is: the kernel binds only what
/// is mounted in the caller's own. The path is taken from /proc and must lead to the very same file, else `ESTALE`.
///
/// # Errors
/// The kernel's; `ENOENT` and `ESTALE` when the file is not there, or not here.
pub fn reopen(fd: BorrowedFd<'_>, host: &OwnedFd, own_process: &OwnedFd) -> sys::Result<OwnedFd> {
    let link = sys::c_string(format!("fd/{}", fd.as_raw_fd()).as_bytes())?;
    let path = sys::c_string(&sys::read_link_at(own_process.as_fd(), &link)?)?;
    let again = sys::open_in_root(host.as_fd(), &path, libc::O_PATH | libc::O_NOFOLLOW)?;
    let (device, inode, _) = sys::stat(fd)?;
    let (same_device, same_inode, _) = sys::stat(again.as_fd())?;
    if (device, inode) == (same_device, same_inode) {
        Ok(again)
    } else {
        Err(Errno(libc::ESTALE))
    }
}

/// A detached copy of what is mounted at `source`, with the attributes that [`bind_flags`] name, and whether it is a
/// directory.
///
/// # Errors
/// `ELOOP` for a symbolic link, else the kernel's.
pub fn copy_mount(source: BorrowedFd<'_>, flags: u32) -> sys::Result<(OwnedFd, bool)> {
    let (_, _, mode) = sys::stat(source)?;
    if mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(Errno(libc::ELOOP));
    }
    let recursive = flags & bind_flags::RECURSIVE != 0;
    let mount = sys::clone_mount(source, recursive)?;
    sys::add_mount_attributes(mount.as_fd(), attributes(flags), recursive)?;
    Ok((mount, mode & libc::S_IFMT == libc::S_IFDIR))
}

/// Opens a directory to refer to it.
///
/// # Errors
/// The kernel's.
pub fn open_directory(path: &CStr) -> Outcome<OwnedFd> {
    sys::open_at(sys::CWD, path, libc::O_PATH | libc::O_DIRECTORY, 0).step(path.to_bytes())
}

/// An absolute path without `.` and `..`.
pub struct Path<'a> {
    names: Vec<&'a [u8]>,
}

impl<'a> Path<'a> {
    /// Takes a path apart.
    ///
    /// # Errors
    /// `EINVAL` when it is relative, leads to the root, or holds `.` or `..`.
    pub fn new(bytes: &'a [u8]) -> Outcome<Self> {
        let names: Vec<&[u8]> = bytes
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        let relative = bytes.first() != Some(&b'/');
        if relative || names.is_empty() || names.iter().any(|name| *name == b"." || *name == b"..")
        {
            return Err(Failure::new(
                [b"path ", bytes].concat(),
                Errno(libc::EINVAL),
            ));
        }
        Ok(Self { names })
    }

    fn bytes(&self) -> Vec<u8> {
        [b"/".as_slice(), &self.names.join(&b'/')].concat()
    }

    /// As a C string.
    ///
    /// # Errors
    /// `EINVAL` when it holds a NUL.
    pub fn name(&self) -> sys::Result<CString> {
        sys::c_string(&self.bytes())
    }

    /// The path above (`/` has no names) and the last name.
    fn split(&self) -> sys::Result<(Self, &'a [u8])> {
        let (last, above) = self.names.split_last().ok_or(Errno(libc::ENOENT))?;
        Ok((
            Self {
                names: above.to_vec(),
            },
            last,
        ))
    }

    fn below(&self, name: &str) -> Vec<u8> {
        [self.bytes().as_slice(), b"/", name.as_bytes()].concat()
    }

    /// The name of a step that has to do with it.
    pub fn what(&self, step: &str) -> Vec<u8> {
        [step.as_bytes(), &self.bytes()].concat()
    }

    fn what_two(&self, step: &str, source: &[u8]) -> Vec<u8> {
        [step.as_bytes(), source, b" to ", &self.bytes()].concat()
    }
}

fn attributes(flags: u32) -> u64 {
    [
        (bind_flags::READ_ONLY, libc::MOUNT_ATTR_RDONLY),
        (bind_flags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (bind_flags::NODEV, libc::MOUNT_ATTR_NODEV),
        (bind_flags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(flag, _)| flags & flag != 0)
    .fold(0, |all, (_, attribute)| all | attribute)
}

/// The pages a tmpfs keeps files in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    Small,
    /// Huge ones for mappings that ask for them by madvise(2).
    Huge,
}

impl Pages {
    fn of(flags: u32) -> Self {
        if flags & tmpfs_flags::HUGE_PAGES != 0 {
            Self::Huge
        } else {
            Self::Small
        }
    }
}

/// A detached tmpfs and its device number.
fn new_tmpfs(size: &[u8], mode: u32, pages: Pages) -> sys::Result<(OwnedFd, u64)> {
    let size = sys::c_string(size)?;
    let mode = sys::c_string(format!("{:o}", mode & 0o7777).as_bytes())?;
    let parameters = [
        (c"size", size.as_c_str()),
        (c"mode", &mode),
        (c"nr_inodes", MOST_INODES),
    ];
    let huge = (pages == Pages::Huge).then_some((c"huge", c"advise"));
    let mount = sys::new_mount(c"tmpfs", &parameters, huge, NOTHING_SPECIAL)?;
    let (device, _, _) = sys::stat(mount.as_fd())?;
    Ok((mount, device))
}
