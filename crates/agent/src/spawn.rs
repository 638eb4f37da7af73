//! Starting a program: everything is prepared first, then a child that shares this process's memory (as vfork's does)
//! makes the few system calls up to the exec. Copying a process is slow under emulation, and so is every system call.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use cloche_proto::message::{exec_flags, Exec};
use libc::{c_char, c_int, c_void};

use crate::sys::{c_string, Errno, Result};

const STACK_SIZE: usize = 64 * 1024;
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// A resource limit for programs.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft and hard limit.
    pub value: libc::rlimit64,
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnError {
    /// The error number.
    pub errno: Errno,
    /// What failed.
    pub what: Vec<u8>,
}

impl SpawnError {
    /// An error of a step.
    pub fn new(errno: Errno, what: &[u8]) -> Self {
        Self {
            errno,
            what: what.to_vec(),
        }
    }
}

/// What the child does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Step {
    Group,
    Terminal,
    Cgroup,
    Streams,
    Limits,
    Nice,
    Groups,
    GroupId,
    UserId,
    Directory,
    Exec,
    /// The program is there, and what it needs to be run (named after its `#!`, or its loader) is not.
    Interpreter,
}

const STEP_NAMES: [&str; 12] = [
    "process group",
    "terminal",
    "pids_max",
    "standard streams",
    "rlimit",
    "niceness",
    "setgroups",
    "setgid",
    "setuid",
    "cwd",
    "exec",
    "interpreter of",
];

/// How programs are started in this agent, whatever the program.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Give each program a session of its own (else only a process group, which stays in the agent's session, so that
    /// it is not orphaned and terminal stop signals work).
    pub own_session: bool,
    /// This process's ids.
    pub own_ids: (u32, u32),
    /// This process runs after others (`sys::run_after_others`), which is not for programs.
    pub waits_for_programs: bool,
}

/// A program ready to be started.
#[derive(Debug)]
pub struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    ids: Option<(u32, u32)>,
    /// The ids are other than the agent's own.
    changes_ids: bool,
    groups: Vec<libc::gid_t>,
    umask: libc::mode_t,
    ignored: u64,
    nice: u8,
    limits: Vec<Limit>,
    manner: Manner,
    /// Descriptor of the cgroup.procs file to join.
    pub cgroup: Option<OwnedFd>,
}

impl Program {
    /// Prepares a program.
    ///
    /// # Errors
    /// `EINVAL` for a string with a zero byte in it, `ENOENT` for an empty program name.
    pub fn new(
        exec: Exec,
        limits: &[Limit],
        manner: Manner,
    ) -> std::result::Result<Self, SpawnError> {
        let strings = |list: Vec<Vec<u8>>, what: &[u8]| {
            let strings: std::result::Result<Vec<_>, _> =
                list.into_iter().map(CString::new).collect();
            strings.map_err(|_| SpawnError::new(Errno(libc::EINVAL), what))
        };
        let mut words = exec.argv;
        if exec.flags & exec_flags::STRACE != 0 {
            words.splice(0..0, [&b"strace"[..], b"-f", b"--"].map(<[u8]>::to_vec));
        }
        let env = strings(exec.env, b"env")?;
        let argv = strings(words, b"argv")?;
        let name = argv.first().map_or(&b""[..], |name| name.as_bytes());
        let mut candidates = candidates(name, &env)?;
        if !exec.program.is_empty() && exec.flags & exec_flags::STRACE == 0 {
            let program =
                c_string(&exec.program).map_err(|errno| SpawnError::new(errno, b"exec"))?;
            candidates.insert(0, program);
        }
        let (uid, gid) = manner.own_ids;
        let changes = exec.uid != uid || exec.gid != gid;
        Ok(Self {
            candidates,
            argv,
            env,
            cwd: c_string(&exec.cwd).map_err(|errno| SpawnError::new(errno, b"cwd"))?,
            ids: (changes || uid == 0).then_some((exec.uid, exec.gid)),
            changes_ids: changes,
            groups: exec.groups,
            umask: exec.umask & 0o777,
            ignored: exec.ignored,
            nice: exec.nice,
            limits: limits.to_vec(),
            manner,
            cgroup: None,
        })
    }

    /// Starts the program with these standard streams; `terminal` is the slave that it gets in the foreground of.
    /// Returns its process id once the exec has succeeded.
    ///
    /// # Errors
    /// [`SpawnError`] with the number and name of the step that failed.
    pub fn start(
        &self,
        streams: [BorrowedFd<'_>; 3],
        terminal: Option<BorrowedFd<'_>>,
        stack: &mut Stack,
    ) -> std::result::Result<i32, SpawnError> {
        let pointers = |list: &[CString]| -> Vec<*const c_char> {
            let pointers = list.iter().map(|s| s.as_ptr());
            pointers.chain([ptr::null()]).collect()
        };
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        let child = Child {
            program: self,
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            streams: streams.map(|fd| fd.as_raw_fd()),
            terminal: terminal.map(|fd| fd.as_raw_fd()),
            errno: AtomicI32::new(0),
            step: AtomicU32::new(0),
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the child runs on its own stack and, because of CLONE_VFORK, this process sleeps until it has execed
        // or exited; so `child` and all it points to outlive it, and nothing is shared with running code. It only
        // makes system calls. All signals are blocked and no handlers exist.
        let pid = unsafe {
            libc::clone(
                run_child,
                stack.top(),
                flags,
                ptr::from_ref(&child).cast_mut().cast(),
            )
        };
        if pid < 0 {
            return Err(SpawnError::new(Errno::last(), b"clone"));
        }
        match child.errno.load(Ordering::Relaxed) {
            0 => Ok(pid),
            errno => {
                reap(pid);
                let step = child.step.load(Ordering::Relaxed) as usize;
                let name = STEP_NAMES.get(step).copied().unwrap_or("exec");
                let mut what = name.as_bytes().to_vec();
                let subject: &[u8] = match name {
                    "exec" | "interpreter of" => {
                        self.argv.first().map_or(b"", |name| name.as_bytes())
                    }
                    "cwd" => self.cwd.as_bytes(),
                    _ => b"",
                };
                what.push(b' ');
                what.extend_from_slice(&subject[..subject.len().min(1024)]);
                Err(SpawnError::new(Errno(errno), what.trim_ascii_end()))
            }
        }
    }
}

fn reap(pid: i32) {
    // SAFETY: null status is allowed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
}

/// The paths to try: the name itself when it holds a slash, else the name in every directory of PATH.
fn candidates(name: &[u8], env: &[CString]) -> std::result::Result<Vec<CString>, SpawnError> {
    if name.is_empty() {
        return Err(SpawnError::new(Errno(libc::ENOENT), b"exec"));
    }
    let whole = |path: &[u8]| c_string(path).map_err(|errno| SpawnError::new(errno, b"exec"));
    if name.contains(&b'/') {
        return Ok(vec![whole(name)?]);
    }
    let path = env.iter().find_map(|e| e.as_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(|byte| *byte == b':')
        .map(|directory| {
            let separator: &[u8] = if directory.is_empty() { b"./" } else { b"/" };
            whole(&[directory, separator, name].concat())
        })
        .collect()
}

/// The stack children run on until their exec; used by one at a time.
#[derive(Debug)]
pub struct Stack(Vec<u8>);

impl Stack {
    /// Makes the stack.
    pub fn new() -> Self {
        Self(vec![0; STACK_SIZE])
    }

    fn top(&mut self) -> *mut c_void {
        let end = self.0.as_mut_ptr_range().end;
        let surplus = end.addr() % 16;
        end.wrapping_sub(surplus).cast()
    }
}

struct Child<'a> {
    program: &'a Program,
    argv: *const *const c_char,
    env: *const *const c_char,
    streams: [RawFd; 3],
    terminal: Option<RawFd>,
    errno: AtomicI32,
    step: AtomicU32,
}

extern "C" fn run_child(child: *mut c_void) -> c_int {
    // SAFETY: `start` passes a Child that outlives this function.
    let child = unsafe { &*child.cast_const().cast::<Child<'_>>() };
    let (step, errno) = child.prepare_and_exec();
    child.step.store(step as u32, Ordering::Relaxed);
    child.errno.store(errno.0, Ordering::Relaxed);
    crate::sys::exit_now(127);
}

type StepResult = std::result::Result<(), (Step, Errno)>;

fn done(result: c_int, step: Step) -> StepResult {
    if result < 0 {
        Err((step, Errno::last()))
    } else {
        Ok(())
    }
}

impl Child<'_> {
    /// Runs in the child. Comes back only with the step that failed.
    fn prepare_and_exec(&self) -> (Step, Errno) {
        match self.prepare() {
            Ok(()) => self.exec(),
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> StepResult {
        let program = self.program;
        self.lead_group()?;
        if let Some(fd) = &program.cgroup {
            // SAFETY: one live byte.
            let written = unsafe { libc::write(fd.as_raw_fd(), b"0".as_ptr().cast(), 1) };
            done(if written < 0 { -1 } else { 0 }, Step::Cgroup)?;
        }
        for (number, fd) in (0..).zip(self.streams) {
            // SAFETY: no pointers; the source is never 0 to 2, so its close-on-exec flag is not inherited.
            done(unsafe { libc::dup2(fd, number) }, Step::Streams)?;
        }
        // SAFETY: no pointers.
        unsafe { libc::umask(program.umask) };
        program.limits.iter().try_for_each(set_limit)?;
        if program.manner.waits_for_programs {
            crate::sys::run_like_others();
        }
        if program.nice > 0 {
            // SAFETY: no pointers.
            let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, program.nice.into()) };
            done(set, Step::Nice)?;
        }
        ignore_signals(program.ignored);
        unblock_signals();
        // From here on a program of the same user may stop this child, and with it the agent, which waits for it: so
        // as little as possible comes after.
        self.take_ids()?;
        // SAFETY: a C string.
        done(
            unsafe { libc::chdir(program.cwd.as_ptr()) },
            Step::Directory,
        )
    }

    fn lead_group(&self) -> StepResult {
        // SAFETY: no pointers but that of TIOCSPGRP to a live int.
        unsafe {
            if self.program.manner.own_session && self.terminal.is_none() {
                return done(libc::setsid(), Step::Group);
            }
            done(libc::setpgid(0, 0), Step::Group)?;
            if let Some(terminal) = self.terminal {
                let group = libc::getpid();
                done(
                    libc::ioctl(terminal, libc::TIOCSPGRP, &group),
                    Step::Terminal,
                )?;
            }
        }
        Ok(())
    }

    fn take_ids(&self) -> StepResult {
        let Some((uid, gid)) = self.program.ids else {
            return Ok(());
        };
        let groups = &self.program.groups;
        // The system calls themselves: the C library's functions would look for other threads to change, too.
        // SAFETY: pointer and length are those of a live slice; the others have no pointers.
        unsafe {
            let set = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            // A user namespace of one user lets nobody set groups.
            let denied = set < 0 && Errno::last().0 == libc::EPERM;
            if !denied || self.program.changes_ids {
                done(set as c_int, Step::Groups)?;
            }
            let set = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
            done(set as c_int, Step::GroupId)?;
            let set = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
            done(set as c_int, Step::UserId)
        }
    }

    /// Tries every candidate as a shell would: one that is there but may not be run is remembered, and the next tried.
    fn exec(&self) -> (Step, Errno) {
        let mut denied = false;
        let mut incomplete = false;
        let mut last = Errno(libc::ENOENT);
        for path in &self.program.candidates {
            // SAFETY: a C string and two null-terminated arrays of C strings, all alive.
            unsafe { libc::execve(path.as_ptr(), self.argv, self.env) };
            last = Errno::last();
            match last.0 {
                libc::EACCES => denied = true,
                libc::ENOENT => {
                    // SAFETY: a C string.
                    incomplete |= unsafe { libc::access(path.as_ptr(), libc::F_OK) } == 0;
                }
                libc::ENOTDIR => {}
                _ => return (Step::Exec, last),
            }
        }
        if denied {
            (Step::Exec, Errno(libc::EACCES))
        } else if incomplete {
            (Step::Interpreter, Errno(libc::ENOENT))
        } else {
            (Step::Exec, last)
        }
    }
}

/// In the child: also a hard limit that may not be raised is no error; the program keeps the one there is.
fn set_limit(limit: &Limit) -> StepResult {
    // SAFETY: pointers to live values or null; the cast of the resource is to its own C type.
    unsafe {
        let resource = limit.resource as libc::__rlimit_resource_t;
        if libc::setrlimit64(resource, &limit.value) == 0 {
            return Ok(());
        }
        let mut now = limit.value;
        done(libc::getrlimit64(resource, &mut now), Step::Limits)?;
        now.rlim_cur = limit.value.rlim_cur.min(now.rlim_max);
        done(libc::setrlimit64(resource, &now), Step::Limits)
    }
}

/// In the child, whose table of actions is its own. What was decoded names none that cannot be ignored; those that the
/// C library keeps for itself it refuses, and no program can have set them.
fn ignore_signals(ignored: u64) {
    for signal in (1..=64).filter(|signal| ignored >> (signal - 1) & 1 != 0) {
        // SAFETY: SIG_IGN is an action.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn unblock_signals() {
    // SAFETY: an initialised set.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Checks and stores a limit for programs started later.
///
/// # Errors
/// `EINVAL` for a resource that does not exist.
pub fn remember_limit(limits: &mut Vec<Limit>, resource: u32, soft: u64, hard: u64) -> Result<()> {
    const RESOURCES: u32 = 16;
    if resource >= RESOURCES || soft > hard {
        return Err(Errno(libc::EINVAL));
    }
    limits.retain(|limit| limit.resource != resource);
    let value = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    limits.push(Limit { resource, value });
    Ok(())
}
