//! What the process itself is allowed and how it ends: dumps, signals, panics, the filter from inside.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::logger;

/// Exit status after a fault of the program itself, or of the memory it was given.
const FAULT: i32 = 3;

/// Makes the process one that nobody of the same user can trace or dump, and that ends at its first fault.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn harden() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(|place| format!(" at {}:{}", place.file(), place.line()))
            .unwrap_or_default();
        logger::say(format_args!("a fault in the program{place}"));
        // SAFETY: ends the process; nothing of it runs after this.
        unsafe { libc::_exit(FAULT) }
    }));
    catch_bus_errors()
}

/// Makes programs that this process may execute give it no rights; its filters and Landlock need that.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take numbers, no pointers.
    if unsafe { libc::prctl(option, value, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A frontend that makes its memory smaller gets this instead of a crash: access to what is gone raises SIGBUS.
fn catch_bus_errors() -> io::Result<()> {
    extern "C" fn end(_signal: i32) {
        const TEXT: &[u8] = b"cloche: the frontend took memory away that it had shared\n";
        // SAFETY: both calls may be made in a signal handler, and `TEXT` is as long as it says. Nothing runs after them.
        unsafe {
            libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
            libc::_exit(FAULT)
        }
    }
    // SAFETY: all-zero bytes are a valid `sigaction`: no flags, nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = end as *const () as libc::sighandler_t;
    // SAFETY: `action` is valid, and its handler calls nothing that a signal handler may not.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The signals that ask for an end.
fn end_set() -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid `sigset_t`, and the calls only write that one.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        for signo in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut signals, signo);
        }
        signals
    }
}

/// Keeps the signals that ask for an end waiting, in this thread and those it makes.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn block_end_signals() -> io::Result<()> {
    let signals = end_set();
    // SAFETY: `signals` is valid and only read.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Turns the signals that ask for an end, once they are blocked, into something to read from a descriptor.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn end_signals() -> io::Result<OwnedFd> {
    let signals = end_set();
    // SAFETY: `signals` is valid and only read.
    let fd = unsafe { libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that says that no signal has come, and never anything else.
///
/// # Errors
/// When the kernel gives none.
pub(crate) fn no_signals() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the calling thread a working directory and a file mask of its own.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_shared_directory() -> io::Result<()> {
    // SAFETY: no pointers; nothing of the other threads changes.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// One instruction of a filter (`struct sock_filter`).
const INSTRUCTION: usize = 8;

/// Puts a system call filter on all threads, for good.
///
/// # Errors
/// When `filter` is no program of whole instructions, or the kernel refuses it.
pub(crate) fn install_filter(filter: &[u8]) -> io::Result<()> {
    let program: Vec<libc::sock_filter> = filter
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    if length == 0 || filter.len() % INSTRUCTION != 0 {
        return Err(io::Error::other("it is no whole program"));
    }
    forbid_new_privileges()?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` names `length` instructions, which the kernel copies.
    let status = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match status {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} cannot have it"))),
    }
}

/// Lets a descriptor that the frontend gave never block this process.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
