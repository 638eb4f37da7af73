//! System calls, each behind a function that is safe to call.

use std::ffi::{CStr, CString};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_long};

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

fn full_set() -> libc::sigset_t {
    // SAFETY: sigfillset initialises the whole set.
    unsafe {
        let mut set = zeroed();
        libc::sigfillset(&mut set);
        set
    }
}

/// Blocks every signal of this process.
pub fn block_signals() {
    // SAFETY: the set is initialised; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &full_set(), ptr::null_mut()) };
}

/// Gives every signal its default action again (what the parent ignored would stay ignored over an exec).
pub fn reset_signal_actions() {
    const LAST_SIGNAL: c_int = 64;
    // The kernel's struct sigaction: all zero is the default action.
    let action = [0u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // The system call itself: the C library refuses the two signals it keeps for itself, which a parent may ignore.
        // SAFETY: `action` is as long as the structure; signals that cannot be changed give an error that does not
        // matter.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}

/// A descriptor on which the given (blocked) signals can be read.
pub fn signal_fd(signals: &[c_int]) -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        own(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))
    }
}

/// Reads signals from [`signal_fd`]; returns whether any was other than SIGCHLD.
pub fn read_signals(fd: BorrowedFd<'_>) -> bool {
    const SIZE: usize = size_of::<libc::signalfd_siginfo>();
    let mut buf = [0; SIZE * 8];
    let count = read(fd, &mut buf).unwrap_or(0);
    let chld = libc::SIGCHLD.to_ne_bytes();
    buf[..count]
        .chunks_exact(SIZE)
        .any(|info| info[..4] != chld)
}

/// A child whose state has changed.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// The child.
    pub pid: i32,
    /// What happened to it.
    pub change: Change,
    /// What it used.
    pub usage: Usage,
}

/// What happened to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It ended with a status.
    Exited(i32),
    /// It was ended by a signal.
    Killed(i32),
    /// It was stopped by a signal.
    Stopped(i32),
    /// It goes on.
    Continued,
}

/// What a child used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user_ns: u64,
    /// Processor time in the kernel.
    pub sys_ns: u64,
    /// Largest resident set.
    pub maxrss_bytes: u64,
}

/// Waits for any child's change of state; `None` when there is nothing (more) to report.
pub fn wait_any(block: bool) -> Option<Waited> {
    let mut flags = libc::WUNTRACED | libc::WCONTINUED | libc::__WALL;
    if !block {
        flags |= libc::WNOHANG;
    }
    let mut status = 0;
    // SAFETY: zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { zeroed() };
    let pid = loop {
        // SAFETY: both pointers are to live values.
        let pid = unsafe { libc::wait4(-1, &mut status, flags, &mut usage) };
        if pid >= 0 || Errno::last().0 != libc::EINTR {
            break pid;
        }
    };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFEXITED(status) {
        Change::Exited(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else {
        Change::Continued
    };
    let time = |t: libc::timeval| {
        t.tv_sec
            .unsigned_abs()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(t.tv_usec.unsigned_abs().wrapping_mul(1000))
    };
    Some(Waited {
        pid,
        change,
        usage: Usage {
            user_ns: time(usage.ru_utime),
            sys_ns: time(usage.ru_stime),
            maxrss_bytes: usage.ru_maxrss.unsigned_abs().wrapping_mul(1024),
        },
    })
}

/// Whether this process has such a child (which may have ended and not been waited for).
pub fn is_child(pid: i32) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: zero is a valid siginfo, which waitid fills.
    unsafe {
        let mut info = zeroed();
        libc::waitid(libc::P_PID, pid.unsigned_abs(), &mut info, flags) == 0
    }
}

/// Sends a signal to a process group.
pub fn kill_group(group: i32, signal: c_int) -> Result<()> {
    // Never "every process": a group is a program's id, so it is above 1.
    if group <= 1 {
        return Err(Errno(libc::ESRCH));
    }
    // SAFETY: no pointers.
    check(unsafe { libc::kill(-group, signal) }).map(drop)
}

/// A clock in nanoseconds.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is live.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec
        .unsigned_abs()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec.unsigned_abs())
}

/// Sets the clock.
pub fn set_clock(realtime_ns: u64) -> Result<()> {
    let seconds = libc::time_t::try_from(realtime_ns / 1_000_000_000);
    let time = libc::timespec {
        tv_sec: seconds.map_err(|_| Errno(libc::EINVAL))?,
        tv_nsec: c_long::try_from(realtime_ns % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: `time` is live.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
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

/// Release of the running kernel.
pub fn kernel_release() -> Vec<u8> {
    // SAFETY: zero is a valid utsname, which uname fills with C strings.
    let name = unsafe {
        let mut name: libc::utsname = zeroed();
        libc::uname(&mut name);
        name
    };
    let release = name.release.iter().take_while(|c| **c != 0);
    release.map(|c| c.to_ne_bytes()[0]).collect()
}

/// mount(2); empty strings are null.
pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> Result<()> {
    let or_null = |s: &CStr| {
        if s.is_empty() {
            ptr::null()
        } else {
            s.as_ptr()
        }
    };
    // SAFETY: every pointer is null or a C string.
    check(unsafe {
        libc::mount(
            or_null(source),
            target.as_ptr(),
            or_null(fstype),
            flags,
            or_null(data).cast(),
        )
    })
    .map(drop)
}

/// chroot(2).
pub fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: a C string.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length are those of a live slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Credits a seed to the kernel's random numbers and takes it into use.
pub fn add_entropy(device: BorrowedFd<'_>, seed: &[u8]) -> Result<()> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let size = c_int::try_from(seed.len()).map_err(|_| Errno(libc::EINVAL))?;
    let bits = size.checked_mul(8).ok_or(Errno(libc::EINVAL))?;
    let mut request = Vec::with_capacity(seed.len() + 8);
    request.extend_from_slice(&bits.to_ne_bytes());
    request.extend_from_slice(&size.to_ne_bytes());
    request.extend_from_slice(seed);
    // SAFETY: `request` is a struct rand_pool_info with `size` bytes behind its two ints.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, request.as_ptr()) })?;
    // SAFETY: no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Brings the loopback interface up.
pub fn loopback_up() -> Result<()> {
    // SAFETY: no pointers.
    let socket =
        own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name[0] = libc::c_char::from_ne_bytes([b'l']);
    request.ifr_name[1] = libc::c_char::from_ne_bytes([b'o']);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: `request` is a live ifreq with a name and flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

/// Loads a kernel module from a file; one that is loaded already is no error.
pub fn load_module(file: BorrowedFd<'_>, parameters: &CStr, compressed: bool) -> Result<()> {
    const COMPRESSED_FILE: c_int = 4;
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    // SAFETY: the parameters are a C string.
    let done = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    match done {
        0 => Ok(()),
        _ if Errno::last().0 == libc::EEXIST => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// Writes everything to the disks.
pub fn sync() {
    // SAFETY: no arguments.
    unsafe { libc::sync() };
}

/// Restarts the machine (a machine without ACPI ends on a reset), or else switches it off.
pub fn reboot() {
    // SAFETY: no pointers.
    unsafe {
        libc::reboot(libc::RB_AUTOBOOT);
        libc::reboot(libc::RB_POWER_OFF);
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

/// The type number of the file system at a path.
pub fn file_system_type(path: &CStr) -> Result<i64> {
    // SAFETY: zero is a valid statfs, and the path is a C string.
    unsafe {
        let mut info: libc::statfs = zeroed();
        check(libc::statfs(path.as_ptr(), &mut info))?;
        Ok(info.f_type)
    }
}

/// A non-blocking inotify instance.
pub fn inotify() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })
}

/// Watches a directory for new names.
pub fn inotify_watch(inotify: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let mask = libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_ATTRIB | libc::IN_DELETE_SELF;
    // SAFETY: the path is a C string.
    check(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) }).map(drop)
}

/// A non-blocking socket that hears of the kernel's device events.
pub fn device_events() -> Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let socket =
        own(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) })?;
    // SAFETY: zero is a valid sockaddr_nl; its size is passed with it.
    unsafe {
        let mut address: libc::sockaddr_nl = zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = 1;
        check(libc::bind(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        ))?;
    }
    Ok(socket)
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
