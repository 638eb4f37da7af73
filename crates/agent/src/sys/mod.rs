//! System calls, each behind a function that is safe to call.

mod guest;
mod interface;
mod process;

pub use guest::*;
pub use interface::*;
pub use process::*;

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::c_int;

/// An error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number of the call that failed last.
    pub fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }

    /// The number as it goes over the wire.
    pub const fn code(self) -> u32 {
        self.0.unsigned_abs()
    }

    /// Whether the call would have had to wait, or was interrupted.
    pub const fn is_again(self) -> bool {
        self.0 == libc::EAGAIN || self.0 == libc::EINTR
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Errno>;

fn check(value: c_int) -> Result<c_int> {
    if value < 0 {
        Err(Errno::last())
    } else {
        Ok(value)
    }
}

fn check_size(value: isize) -> Result<usize> {
    usize::try_from(value).map_err(|_| Errno::last())
}

fn own(value: c_int) -> Result<OwnedFd> {
    let fd = check(value)?;
    // SAFETY: the call that gave `fd` has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes as a C string.
///
/// # Errors
/// `EINVAL` when they hold a zero byte.
pub fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno(libc::EINVAL))
}

/// read(2).
pub fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and length are those of a live, writable slice.
    check_size(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })
}

/// write(2).
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    check_size(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// open(2) with `O_CLOEXEC`.
pub fn open(path: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    // SAFETY: `path` is a C string; the mode is passed as the variadic argument open expects.
    own(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

/// openat2(2) of a directory below another one, as a place only, by a way without symbolic links.
pub fn open_beneath(root: &OwnedFd, path: &CStr) -> Result<OwnedFd> {
    // SAFETY: zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    how.flags = u64::from(flags.unsigned_abs());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: `path` is a C string and `how` is live, its size passed with it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how,
            std::mem::size_of::<libc::open_how>(),
        )
    };
    own(c_int::try_from(fd).map_err(|_| Errno(libc::EBADF))?)
}

/// A pipe: read end, write end, both close-on-exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// A pair of connected sequenced-packet sockets, close-on-exec.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// Accepts a connection, non-blocking and close-on-exec.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null addresses are allowed.
    own(unsafe { libc::accept4(fd.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) })
}

/// A close-on-exec copy of a descriptor, numbered 3 or more.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })
}

/// Puts a copy of a descriptor in the place of another.
pub fn replace(fd: BorrowedFd<'_>, place: RawFd) {
    // SAFETY: no pointers; callers own the place.
    unsafe { libc::dup2(fd.as_raw_fd(), place) };
}

/// Sets `O_NONBLOCK` alone of the file's status flags.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers. Access modes are ignored by F_SETFL.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// Asks for a larger pipe; it is only a wish.
pub fn set_pipe_size(fd: BorrowedFd<'_>, size: c_int) {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
}

/// How many bytes wait in a pipe.
pub fn bytes_waiting(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// An epoll instance.
pub fn epoll_create() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Adds (or, with `change`, changes) what an epoll instance waits for, edge-triggered.
pub fn epoll_set(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    token: u64,
    interest: c_int,
    change: bool,
) -> Result<()> {
    let mut event = libc::epoll_event {
        events: (interest | libc::EPOLLET) as u32,
        u64: token,
    };
    let op = if change {
        libc::EPOLL_CTL_MOD
    } else {
        libc::EPOLL_CTL_ADD
    };
    // SAFETY: `event` lives through the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd.as_raw_fd(), &mut event) }).map(drop)
}

/// Waits for events; a negative timeout waits for ever.
pub fn epoll_wait<'a>(
    epoll: BorrowedFd<'_>,
    events: &'a mut [libc::epoll_event],
    timeout_ms: c_int,
) -> &'a [libc::epoll_event] {
    let max = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: pointer and count are those of a live slice.
    let count =
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), max, timeout_ms) };
    let count = usize::try_from(count).unwrap_or(0);
    &events[..count.min(events.len())]
}

/// A clock in nanoseconds.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Seldom asked for: to map the kernel's page for it and to translate what is there takes an emulated machine longer than
    // the system call.
    // SAFETY: `time` is live.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &mut time) };
    time.tv_sec
        .unsigned_abs()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec.unsigned_abs())
}

/// Fills a buffer with random bytes without ever waiting for the kernel to have gathered enough: at the very start of
/// a guest it may not have, and the host seeds it only after the attach.
pub fn random(into: &mut [u8]) {
    const GRND_INSECURE: u32 = 4;
    // SAFETY: pointer and length are those of a live slice.
    let got = unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), GRND_INSECURE) };
    if usize::try_from(got) != Ok(into.len()) {
        let mut seed = clock_ns(libc::CLOCK_MONOTONIC);
        for byte in into {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = seed.to_le_bytes()[7];
        }
    }
}

/// Runs `work` in a forked child that then exits; returns its process id.
pub fn fork(work: impl FnOnce()) -> Result<i32> {
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        work();
        exit_now(0);
    }
    Ok(pid)
}

/// Ends this process at once.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(status) }
}

/// Waits for a signal, for ever.
pub fn pause() {
    // SAFETY: no arguments.
    unsafe { libc::pause() };
}

/// This process's id.
pub fn process_id() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::getpid() }
}

/// User and group id of this process.
pub fn own_ids() -> (u32, u32) {
    // SAFETY: no arguments.
    unsafe { (libc::getuid(), libc::getgid()) }
}

/// Makes this process a session leader; returns whether it is one now.
pub fn lead_session() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::setsid() > 0 || libc::getsid(0) == libc::getpid() }
}

/// prctl(2) with one number.
pub fn prctl(option: c_int, value: libc::c_ulong) {
    // SAFETY: only called with options whose argument is a number; what fails changes nothing.
    unsafe { libc::prctl(option, value, 0, 0, 0) };
}

/// Marks every descriptor from `first` on as close-on-exec (or closes those up to `last`).
pub fn close_range(first: RawFd, last: RawFd, only_mark: bool) {
    const CLOEXEC: c_int = 4;
    let flags = if only_mark { CLOEXEC } else { 0 };
    if first <= last {
        // SAFETY: callers own the descriptors in the range; a kernel that is too old gives an error.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    }
}

/// Waits until one of two descriptors can be read, at most so long.
pub fn wait_readable(fds: [BorrowedFd<'_>; 2], timeout_ms: c_int) {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: pointer and count are those of a live array.
    unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout_ms) };
}
