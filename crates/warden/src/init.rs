//! PID 1 of the domain's pid namespace: takes commands, starts processes, reaps, and dies with its supervisor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cloche_proto::warden::{Spawn, ToSupervisor, ToWarden};

use crate::failure::{Failure, Outcome, Step};
use crate::keys;
use crate::socket::Socket;
use crate::spawn;
use crate::sys::{self, Ended, Errno, Forked};
use crate::WARDEN_ID;

/// The byte the outer process writes when the ids are mapped.
pub const GO: u8 = 1;
/// Most processes that PID 1 keeps account of at a time.
const MAX_CHILDREN: usize = 1024;

/// What PID 1 dies with, besides the supervisor's socket.
pub struct Lifelines {
    outer: OwnedFd,
}

impl Lifelines {
    /// `outer` is a pipe whose writing end only the outer process has.
    pub fn new(outer: OwnedFd) -> Self {
        Self { outer }
    }

    /// Waits until the outer process has mapped the ids; false when it died first.
    fn wait_for_go(&self) -> bool {
        sys::read(self.outer.as_fd(), &mut [0]) == Ok(1)
    }
}

/// A process that was started.
struct Child {
    id: u32,
    pid: libc::pid_t,
    /// Until the exec: where a failure is told, and the pidfd for the supervisor.
    starting: Option<(OwnedFd, OwnedFd)>,
}

struct Init<'a> {
    socket: &'a mut Socket,
    null: OwnedFd,
    children: Vec<Child>,
}

/// Runs PID 1 until the supervisor or the outer process is gone. Leaving ends every process of the domain.
pub fn run(socket: &mut Socket, lifelines: &Lifelines) -> ! {
    let status = match serve(socket, lifelines) {
        Ok(()) => 0,
        Err(failure) => {
            // When the supervisor is gone nobody needs to know.
            let _ = socket.send(&failure.message(WARDEN_ID), None);
            125
        }
    };
    sys::exit_now(status)
}

fn serve(socket: &mut Socket, lifelines: &Lifelines) -> Outcome {
    // The pipe alone would do; the signal also ends a PID 1 that was stopped. It is not lost to a race, because
    // GO does not come when the outer process died before this line.
    if !cfg!(feature = "mutant-no-lifeline") {
        sys::prctl(
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL.unsigned_abs().into(),
            0,
        )
        .step("lifeline")?;
    }
    if !lifelines.wait_for_go() {
        return Ok(());
    }
    sys::setsid().step("setsid")?;
    sys::set_process_name(b"cloche-warden/1");
    keys::take_away()?;
    // What is mounted here never reaches the host; what the host unmounts does not stay in use here.
    sys::set_propagation(libc::MS_SLAVE).step("make mounts private")?;
    // Nobody in the domain may look into PID 1. The ids are mapped, so /proc/1 need not belong to the caller any more.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).step("dumpable")?;
    let signals = sys::child_signals().step("signalfd")?;
    let null = sys::open_at(sys::CWD, c"/dev/null", libc::O_RDWR, 0).step("/dev/null")?;
    let mut init = Init {
        socket,
        null,
        children: Vec::new(),
    };
    init.socket.send(&ToSupervisor::Ready, None).step("send")?;
    init.serve(lifelines, &signals)
}

impl Init<'_> {
    fn serve(&mut self, lifelines: &Lifelines, signals: &OwnedFd) -> Outcome {
        let mut fds = Vec::new();
        loop {
            fds.clear();
            fds.push(self.socket.interest());
            fds.push(readable(&lifelines.outer));
            fds.push(readable(signals));
            let starting = self
                .children
                .iter()
                .filter_map(|child| child.starting.as_ref());
            fds.extend(starting.map(|(pipe, _)| readable(pipe)));
            sys::poll(&mut fds).step("poll")?;
            if fds.get(1).is_some_and(|fd| fd.revents != 0) && !cfg!(feature = "mutant-no-lifeline")
            {
                return Ok(());
            }
            self.settle_children()?;
            if fds.get(2).is_some_and(|fd| fd.revents != 0) {
                self.reap(signals)?;
            }
            if !self.serve_socket(fds.first().map_or(0, |fd| fd.revents))? {
                return Ok(());
            }
        }
    }

    /// Sends what waits and carries one command out; false when the domain is to end.
    fn serve_socket(&mut self, events: i16) -> Outcome<bool> {
        if events & libc::POLLOUT != 0 {
            self.socket.flush().step("send")?;
        }
        if events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) == 0 {
            return Ok(true);
        }
        let packet = match self.socket.receive() {
            Ok(Some(packet)) => packet,
            Ok(None) | Err(Errno(libc::ECONNRESET)) => return Ok(at_end_of_file()),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => return Ok(true),
            Err(errno) => return Err(Failure::new("receive", errno)),
        };
        let (message, fds, cut) = (ToWarden::decode(packet.bytes), packet.fds, packet.cut);
        let failed = match message {
            Ok(ToWarden::Shutdown) => return Ok(false),
            Ok(ToWarden::Kill { id, signo }) => {
                self.kill(id, signo);
                return Ok(true);
            }
            Ok(ToWarden::Spawn(spawn)) => {
                let id = spawn.id;
                self.spawn(&spawn, fds, cut)
                    .err()
                    .map(|failure| failure.message(id))
            }
            Err(error) => {
                let what = format!("message: {error}").into_bytes();
                Some(Failure::new(what, Errno(libc::EBADMSG)).message(WARDEN_ID))
            }
        };
        if let Some(failed) = failed {
            self.socket.send(&failed, None).step("send")?;
        }
        Ok(true)
    }

    /// Forks a process and leaves it to build its own jail, so that several are built at the same time.
    fn spawn(&mut self, spawn: &Spawn, fds: Vec<OwnedFd>, cut: bool) -> Outcome {
        if self.children.len() >= MAX_CHILDREN {
            return Err(Failure::new("too many processes", Errno(libc::EAGAIN)));
        }
        if self.children.iter().any(|child| child.id == spawn.id) {
            return Err(Failure::new("id in use", Errno(libc::EEXIST)));
        }
        if cut || fds.len() != spawn.descriptors() {
            return Err(Failure::new("descriptors were lost", Errno(libc::EMFILE)));
        }
        let (reader, writer) = sys::pipe().step("pipe")?;
        let pid_namespace = sys::flags(spawn.jail.namespaces) & libc::CLONE_NEWPID;
        match sys::fork(pid_namespace, true).step("fork")? {
            Forked::Child => spawn::run(spawn, fds, &self.null, &writer),
            Forked::Parent(pid, pidfd) => {
                sys::set_nonblocking(reader.as_fd()).step("pipe")?;
                let starting = pidfd.map(|pidfd| (reader, pidfd));
                self.children.push(Child {
                    id: spawn.id,
                    pid,
                    starting,
                });
                Ok(())
            }
        }
    }

    /// A process that is not there (any more) is no error: its EXITED may be on the way.
    fn kill(&self, id: u32, signo: u32) {
        let child = self.children.iter().find(|child| child.id == id);
        if let (Some(child), Ok(signo)) = (child, i32::try_from(signo)) {
            // The process is not reaped yet, so the number is still its own. A wrong signal number does nothing.
            let _ = sys::kill(child.pid, signo);
        }
    }

    /// Reports those whose exec has happened or has failed.
    fn settle_children(&mut self) -> Outcome {
        let mut index = 0;
        while let Some(child) = self.children.get_mut(index) {
            if settle(child, self.socket)? {
                index += 1;
            } else {
                self.children.swap_remove(index);
            }
        }
        Ok(())
    }

    /// Reaps everybody who has ended, orphans too.
    fn reap(&mut self, signals: &OwnedFd) -> Outcome {
        // Only empties it; how many there are says waitpid. EAGAIN: another one has read it.
        let _ = sys::read(signals.as_fd(), &mut [0; 128]);
        loop {
            let (pid, ended) = match sys::wait(-1, libc::WNOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(Errno(libc::ECHILD)) => return Ok(()),
                Err(errno) => return Err(Failure::new("wait", errno)),
            };
            let Some(index) = self.children.iter().position(|child| child.pid == pid) else {
                continue;
            };
            let mut child = self.children.swap_remove(index);
            // It has ended, so its end of the pipe is closed and settling cannot be early.
            if settle(&mut child, self.socket)? {
                let (kind, value) = match ended {
                    Ended::Status(status) => (0, status),
                    Ended::Signal(signo) => (1, signo),
                };
                let exited = ToSupervisor::Exited {
                    id: child.id,
                    kind,
                    value,
                };
                self.socket.send(&exited, None).step("send")?;
            }
        }
    }
}

/// Sends SPAWNED or FAILED when it is known which. False when the process was never started.
fn settle(child: &mut Child, socket: &mut Socket) -> Outcome<bool> {
    let Some((pipe, pidfd)) = child.starting.take() else {
        return Ok(true);
    };
    let mut report = [0; 4096];
    match sys::read(pipe.as_fd(), &mut report) {
        Err(Errno(libc::EAGAIN)) => {
            child.starting = Some((pipe, pidfd));
            Ok(true)
        }
        Ok(0) => {
            let pid = child.pid.unsigned_abs();
            let spawned = ToSupervisor::Spawned { id: child.id, pid };
            socket.send(&spawned, Some(pidfd)).step("send")?;
            Ok(true)
        }
        Ok(count) => {
            let failure = Failure::from_bytes(report.get(..count).unwrap_or_default());
            socket.send(&failure.message(child.id), None).step("send")?;
            Ok(false)
        }
        Err(errno) => Err(Failure::new("pipe", errno)),
    }
}

fn readable(fd: &OwnedFd) -> libc::pollfd {
    libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }
}

/// The supervisor is gone: false, the domain ends. (The mutant goes on, to show that a test sees the difference.)
fn at_end_of_file() -> bool {
    cfg!(feature = "mutant-no-lifeline")
}
