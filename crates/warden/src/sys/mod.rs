//! The system calls the warden makes, each as a safe function. All `unsafe` of the warden stands here and below.

mod fork;
mod mount;
mod packet;
mod rights;
mod terminal;

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_char, c_int, c_long, c_uint, c_ulong, pid_t};

pub use fork::{fork, fork_into, Forked};
pub use mount::{
    add_mount_attributes, attach_mount, clone_mount, detach_mount, enter_mount_namespace,
    make_writable, new_mount, pivot_root, set_propagation,
};
pub use packet::{receive_packet, send_packet};
pub use rights::{
    clear_groups, install_filter, permitted_capabilities, set_capabilities, set_gid, set_uid,
};

pub use terminal::{set_terminal_mode, terminal_mode};

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// The descriptor that stands for the working directory in the `*at` calls.
pub const CWD: RawFd = libc::AT_FDCWD;

fn last_errno() -> Errno {
    Errno(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

fn check<T: Default + PartialOrd>(ret: T) -> Result<T> {
    if ret < T::default() {
        Err(last_errno())
    } else {
        Ok(ret)
    }
}

fn check_fd(ret: c_long) -> Result<OwnedFd> {
    let fd = c_int::try_from(check(ret)?).map_err(|_| Errno(libc::EBADF))?;
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A C string of `bytes`, refused with `EINVAL` when it holds a NUL.
pub fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno(libc::EINVAL))
}

/// The flags of a message as the C type of flags.
pub fn flags(bits: u32) -> c_int {
    c_int::from_ne_bytes(bits.to_ne_bytes())
}

/// Takes possession of a descriptor that this process was started with or was sent.
pub fn adopt_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: callers name descriptors that belong to this process and that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// close_range(2).
pub fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<()> {
    // SAFETY: takes integers only. Descriptors owned by Rust values are closed only at the start, when there are none.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Makes a descriptor close-on-exec.
pub fn set_cloexec(fd: RawFd) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Makes reads from a descriptor return at once.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// An integer socket option of level SOL_SOCKET.
pub fn socket_option(fd: RawFd, option: c_int) -> Result<c_int> {
    let mut value: c_int = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `value` is the four bytes that `length` says.
    check(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    })?;
    Ok(value)
}

/// The calling process is the leader of its session.
pub fn is_session_leader() -> bool {
    // SAFETY: both calls take nothing and cannot fail for the calling process.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// setsid(2).
pub fn setsid() -> Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Effective user and group id.
pub fn ids() -> (u32, u32) {
    // SAFETY: both calls take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Gives a file to a user and a group; `u32::MAX` leaves the one it has.
pub fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the path is empty and ends with NUL.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
        .map(drop)
}

/// umask(2).
pub fn umask(mask: u32) {
    // SAFETY: takes an integer and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Unblocks every signal and gives each its default action.
pub fn reset_signals() {
    // SAFETY: an all-zero sigset_t is valid memory for sigemptyset, and SIG_DFL is a valid action.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signo in 1..=64 {
            libc::signal(signo, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Blocks SIGCHLD and gives a descriptor that is readable when it is pending.
pub fn child_signals() -> Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check_fd(c_long::from(fd))
    }
}

/// A pidfd of a process that was not reaped yet.
pub fn pidfd_open(pid: pid_t) -> Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// unshare(2).
pub fn unshare(namespaces: c_int) -> Result<()> {
    // SAFETY: takes an integer only.
    check(unsafe { libc::unshare(namespaces) }).map(drop)
}

/// Ends the process at once.
pub fn exit_now(status: c_int) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// kill(2).
pub fn kill(pid: pid_t, signo: c_int) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::kill(pid, signo) }).map(drop)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Status(u32),
    /// This signal killed it.
    Signal(u32),
}

/// waitpid(2); `None` when `WNOHANG` was given and nobody has ended.
pub fn wait(pid: pid_t, options: c_int) -> Result<Option<(pid_t, Ended)>> {
    let mut status: c_int = 0;
    loop {
        // SAFETY: `status` is where the kernel may write.
        match check(unsafe { libc::waitpid(pid, &raw mut status, options) }) {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                return Ok(Some((
                    pid,
                    Ended::Status(libc::WEXITSTATUS(status).unsigned_abs()),
                )));
            }
            Ok(pid) => {
                return Ok(Some((
                    pid,
                    Ended::Signal(libc::WTERMSIG(status).unsigned_abs()),
                )));
            }
        }
    }
}

/// pipe2(2), close-on-exec: reading end, writing end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds: [c_int; 2] = [-1; 2];
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let [reader, writer] = fds;
    Ok((adopt_fd(reader), adopt_fd(writer)))
}

/// read(2), restarted when interrupted.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // SAFETY: the pointer and the length are those of one slice.
        match check(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
        {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(count) => return Ok(count.unsigned_abs()),
        }
    }
}

/// Writes all of `bytes`.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of one slice.
        match check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) }) {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(count) => bytes = bytes.get(count.unsigned_abs()..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// poll(2) without a time limit; an interruption counts as nothing ready.
pub fn poll(fds: &mut [libc::pollfd]) -> Result<()> {
    let count = libc::nfds_t::try_from(fds.len()).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the pointer and the count are those of one slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), count, -1) }) {
        Err(Errno(libc::EINTR)) | Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// openat(2), close-on-exec.
pub fn open_at(dir: RawFd, path: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    // SAFETY: `path` ends with NUL.
    check_fd(c_long::from(unsafe {
        libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode)
    }))
}

/// openat2(2) with `RESOLVE_IN_ROOT`, close-on-exec. Magic links of /proc are refused.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> Result<OwnedFd> {
    // SAFETY: all zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).unsigned_abs());
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // A rename or mount anywhere on the machine can make the kernel give up on `..` in a link with EAGAIN.
    let mut tries = 1000;
    loop {
        // SAFETY: `path` ends with NUL; the pointer and the size are those of `how`.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                std::mem::size_of_val(&how),
            )
        };
        match check_fd(ret) {
            Err(Errno(libc::EAGAIN)) if tries > 0 => tries -= 1,
            result => return result,
        }
    }
}

/// Device, inode and mode of what a descriptor refers to.
pub fn stat(fd: BorrowedFd<'_>) -> Result<(u64, u64, u32)> {
    // SAFETY: all zero is a valid stat, and the kernel writes one there.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is empty and ends with NUL; `stat` is large enough.
    check(unsafe {
        libc::fstatat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut stat,
            libc::AT_EMPTY_PATH,
        )
    })?;
    Ok((stat.st_dev, stat.st_ino, stat.st_mode))
}

/// What a symbolic link holds; `ENAMETOOLONG` past `PATH_MAX`.
pub fn read_link_at(dir: BorrowedFd<'_>, path: &CStr) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let room = buffer.as_mut_ptr().cast();
    // SAFETY: `path` ends with NUL; the pointer and the length are those of `buffer`.
    let count =
        check(unsafe { libc::readlinkat(dir.as_raw_fd(), path.as_ptr(), room, buffer.len()) })?;
    if count.unsigned_abs() == buffer.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    buffer.truncate(count.unsigned_abs());
    Ok(buffer)
}

/// mkdirat(2).
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` ends with NUL.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Removes an empty directory.
pub fn rmdir_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: `name` ends with NUL.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// symlinkat(2).
pub fn symlink_at(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings end with NUL.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// fchmod(2).
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// chdir(2).
pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: `path` ends with NUL.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// fchdir(2).
pub fn fchdir(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes an integer only.
    check(unsafe { libc::fchdir(fd.as_raw_fd()) }).map(drop)
}

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the length are those of one slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// setrlimit(2).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is a whole rlimit; an unknown resource is refused by the kernel.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Copies a descriptor to the lowest free number that is at least `lowest`, close-on-exec.
pub fn dup_above(fd: BorrowedFd<'_>, lowest: c_int) -> Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(c_long::from(unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest)
    }))
}

/// dup2(2): `number` is inherited by the program. What was open under that number is closed.
pub fn dup_to(fd: BorrowedFd<'_>, number: c_int) -> Result<()> {
    // SAFETY: takes integers only; callers choose numbers that no live Rust value owns.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// prctl(2) of those operations that take one or two integers.
pub fn prctl(operation: c_int, first: c_ulong, second: c_ulong) -> Result<c_int> {
    let none: c_ulong = 0;
    // SAFETY: callers use operations that take integers only.
    check(unsafe { libc::prctl(operation, first, second, none, none) })
}

/// Names the process (for `ps`), cut to 15 bytes.
pub fn set_process_name(name: &[u8]) {
    let mut buffer = [0u8; 16];
    for (to, from) in buffer.iter_mut().take(15).zip(name) {
        *to = *from;
    }
    // SAFETY: `buffer` ends with NUL within the 16 bytes the kernel reads.
    unsafe { libc::prctl(libc::PR_SET_NAME, buffer.as_ptr()) };
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let mut out: Vec<*const c_char> = strings.iter().map(|one| one.as_ptr()).collect();
    out.push(std::ptr::null());
    out
}

/// execveat(2) of the file `program` itself, which need not have a name here. Returns only on failure.
pub fn exec_file(program: RawFd, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: all strings end with NUL, both arrays with a null pointer, and they live until the call returns.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    last_errno()
}

/// execve(2), and not execveat with a path: filters of programs that have a path can then leave execveat out. Returns
/// only on failure.
pub fn exec_path(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: all strings end with NUL, both arrays with a null pointer, and they live until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}
