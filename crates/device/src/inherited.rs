//! What a device process may use: the descriptors named on its command line, a directory if it serves one, nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::landlock::Reach;
use crate::options::{Options, SOCKET};
use crate::process::set_nonblocking;

/// Descriptors taken over from whoever started the process, and what it will reach by name.
#[derive(Debug)]
pub struct Inherited {
    fds: BTreeMap<&'static str, OwnedFd>,
    reach: Vec<Reach>,
}

impl Inherited {
    /// Takes over the descriptors that each of `devices` names, and closes every other one but the standard streams.
    ///
    /// # Errors
    /// When one of them is not open, or named by two, or something else cannot be closed.
    pub(crate) fn adopt<'a>(
        devices: impl IntoIterator<Item = &'a Options>,
    ) -> io::Result<Vec<Self>> {
        let mut taken = BTreeSet::new();
        let mut adopted = Vec::new();
        for options in devices {
            let mut fds = BTreeMap::new();
            for (name, fd) in options.fds().map_err(io::Error::other)? {
                if !taken.insert(fd) {
                    return Err(io::Error::other(format!("{name}: {fd} is given twice")));
                }
                // SAFETY: no pointers; the kernel says whether the number is open.
                if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                    return Err(io::Error::other(format!("{name}: {fd} is not open")));
                }
                // SAFETY: it is open, was given to this process for this purpose, and is in `taken` only now.
                fds.insert(name, unsafe { OwnedFd::from_raw_fd(fd) });
            }
            adopted.push(Inherited {
                fds,
                reach: Vec::new(),
            });
        }
        close_others(taken.into_iter())?;
        Ok(adopted)
    }

    /// The descriptor behind an option, once.
    #[must_use]
    pub fn take(&mut self, option: &str) -> Option<OwnedFd> {
        self.fds.remove(option)
    }

    /// The file behind an option.
    ///
    /// # Errors
    /// When it was not given, or is neither a regular file nor a block device.
    pub fn take_file(&mut self, option: &'static str) -> io::Result<File> {
        let fd = self.require(option)?;
        let kind = file_type(&fd)?;
        if kind != libc::S_IFREG && kind != libc::S_IFBLK {
            return Err(io::Error::other(format!("{option} names no file")));
        }
        Ok(File::from(fd))
    }

    /// Keeps the files below `root` reachable by name, to be read and, if `is_writable`, to be changed. All others
    /// are out of reach once the device serves.
    ///
    /// # Errors
    /// When `root` is no path.
    pub fn keep_reach(&mut self, root: &str, is_writable: bool) -> io::Result<()> {
        let root = CString::new(root)?;
        self.reach.push(Reach { root, is_writable });
        Ok(())
    }

    /// What is kept reachable, once.
    pub(crate) fn take_reach(&mut self) -> Vec<Reach> {
        std::mem::take(&mut self.reach)
    }

    /// The connected Unix stream socket behind an option, if it was given. It does not block, and is read and written as a
    /// file is: a filter need not allow what only sockets can do.
    ///
    /// # Errors
    /// When it is none.
    pub fn take_stream(&mut self, option: &'static str) -> io::Result<Option<File>> {
        let Some(fd) = self.take(option) else {
            return Ok(None);
        };
        if !is_stream(&fd) || socket_option(&fd, libc::SO_ACCEPTCONN) != Some(0) {
            return Err(io::Error::other(format!(
                "{option} names no connected Unix stream socket"
            )));
        }
        set_nonblocking(&fd)?;
        Ok(Some(fd.into()))
    }

    /// The listening Unix stream socket behind an option. It does not block.
    ///
    /// # Errors
    /// When it was not given, or is none.
    pub fn take_listener(&mut self, option: &'static str) -> io::Result<UnixListener> {
        let fd = self.require(option)?;
        if !is_stream(&fd) || socket_option(&fd, libc::SO_ACCEPTCONN) != Some(1) {
            return Err(io::Error::other(format!(
                "{option} names no listening Unix stream socket"
            )));
        }
        set_nonblocking(&fd)?;
        Ok(fd.into())
    }

    /// The frontend's socket.
    ///
    /// # Errors
    /// When it is no Unix stream socket.
    pub(crate) fn take_socket(&mut self) -> io::Result<Socket> {
        let fd = self.require(SOCKET)?;
        if !is_stream(&fd) {
            return Err(io::Error::other(format!(
                "{SOCKET} names no Unix stream socket"
            )));
        }
        if socket_option(&fd, libc::SO_ACCEPTCONN) == Some(1) {
            Ok(Socket::Listening(fd.into()))
        } else {
            Ok(Socket::Connected(fd.into()))
        }
    }

    fn require(&mut self, option: &'static str) -> io::Result<OwnedFd> {
        self.take(option)
            .ok_or_else(|| io::Error::other(format!("{option} is required")))
    }
}

/// Where the frontend is.
#[derive(Debug)]
pub(crate) enum Socket {
    /// It will connect.
    Listening(UnixListener),
    /// It has been connected by whoever started this process.
    Connected(UnixStream),
}

fn is_stream(fd: &OwnedFd) -> bool {
    socket_option(fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
        && socket_option(fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
}

fn close_others(named: impl Iterator<Item = RawFd>) -> io::Result<()> {
    let mut keep: Vec<u32> = named.filter_map(|fd| u32::try_from(fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no pointers. What is closed was inherited unasked: nothing in this process owns it yet.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What kind of file a descriptor refers to: one of the `S_IF` values; 0 for the kernel's own, such as event descriptors.
pub(crate) fn file_type(fd: &impl AsRawFd) -> io::Result<u32> {
    Ok(file_status(fd)?.st_mode & libc::S_IFMT)
}

/// The length of a regular file in bytes; an error for anything else.
pub(crate) fn file_length(fd: &impl AsRawFd) -> io::Result<u64> {
    let status = file_status(fd)?;
    if status.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::Error::other("it is no file"));
    }
    u64::try_from(status.st_size).map_err(io::Error::other)
}

fn file_status(fd: &impl AsRawFd) -> io::Result<libc::stat> {
    // SAFETY: all-zero bytes are a valid `stat`.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `stat` into it.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut status) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

fn socket_option(fd: &OwnedFd, option: i32) -> Option<i32> {
    let mut value: i32 = 0;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    };
    (status == 0).then_some(value)
}
