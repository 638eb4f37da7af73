//! Signals and children.

use std::mem::{size_of, zeroed};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;

use libc::c_int;

use super::{check, own, read, Errno, Result};

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

/// Lets this process run when the program that runs just now blocks or has had its time, and not at once.
pub fn run_after_others() {
    schedule(libc::SCHED_BATCH);
}

/// Takes that back.
pub fn run_like_others() {
    schedule(libc::SCHED_OTHER);
}

fn schedule(policy: c_int) {
    // SAFETY: a live value; all zero are the parameters of these policies, which every process may choose.
    unsafe {
        let parameters: libc::sched_param = zeroed();
        libc::sched_setscheduler(0, policy, &parameters);
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
