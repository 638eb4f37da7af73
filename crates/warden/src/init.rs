//! PID 1 of the domain's pid namespace: takes commands, starts processes, reaps, and dies with its supervisor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cloche_proto::warden::{Spawn, ToSupervisor, ToWarden};

use crate::errand::{self, Errand};
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
/// Most changes of trees that are under way at a time.
const MAX_ERRANDS: usize = 16;

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

/// A process that changes the tree of another one; it is reaped as an orphan is.
struct Errandsman {
    request: u32,
    pipe: OwnedFd,
}

struct Init<'a> {
    socket: &'a mut Socket,
    null: OwnedFd,
    children: Vec<Child>,
    errands: Vec<Errandsman>,
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
        errands: Vec::new(),
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
            fds.extend(self.errands.iter().map(|errand| readable(&errand.pipe)));
            sys::poll(&mut fds).step("poll")?;
            if fds.get(1).is_some_and(|fd| fd.revents != 0) && !cfg!(feature = "mutant-no-lifeline")
            {
                return Ok(());
            }
            self.settle_children()?;
            self.settle_errands()?;
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
            Ok(ToWarden::Mount {
                request,
                id,
                path,
                flags,
            }) => self
                .mount(request, id, path, flags, fds, cut)
                .err()
                .map(|failure| failure.done(request)),
            Ok(ToWarden::Unmount { request, id, path }) => self
                .send_on_errand(request, id, &Errand::Unmount { path })
                .err()
                .map(|failure| failure.done(request)),
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
    fn spawn(&mut self, spawn: &Spawn, mut fds: Vec<OwnedFd>, cut: bool) -> Outcome {
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
        let forked = if spawn.cgroup {
            let cgroup = fds.remove(spawn.fds.len());
            sys::fork_into(pid_namespace, cgroup.as_fd()).step("enter its cgroup")?
        } else {
            sys::fork(pid_namespace, true).step("fork")?
        };
        match forked {
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

    fn mount(
        &mut self,
        request: u32,
        id: u32,
        path: Vec<u8>,
        flags: u32,
        fds: Vec<OwnedFd>,
        cut: bool,
    ) -> Outcome {
        let source = <[OwnedFd; 1]>::try_from(fds).ok().filter(|_| !cut);
        let [source] =
            source.ok_or_else(|| Failure::new("descriptors were lost", Errno(libc::EMFILE)))?;
        let errand = Errand::Mount {
            source,
            path,
            flags,
        };
        self.send_on_errand(request, id, &errand)
    }

    /// Forks a process that changes the tree of the process `id`, and does not wait for it.
    fn send_on_errand(&mut self, request: u32, id: u32, errand: &Errand) -> Outcome {
        if self.errands.len() >= MAX_ERRANDS {
            return Err(Failure::new("too many requests", Errno(libc::EAGAIN)));
        }
        let child = self.children.iter().find(|child| child.id == id);
        // One that was not started yet has no tree of its own to be changed.
        let child = child.filter(|child| child.starting.is_none());
        let child = child.ok_or_else(|| Failure::new("process", Errno(libc::ESRCH)))?;
        // It is not reaped yet, so the number is still its own.
        let pidfd = sys::pidfd_open(child.pid).step("process")?;
        let (reader, writer) = sys::pipe().step("pipe")?;
        match sys::fork(0, false).step("fork")? {
            Forked::Child => errand::run(errand, &pidfd, &writer),
            Forked::Parent(..) => {
                sys::set_nonblocking(reader.as_fd()).step("pipe")?;
                let pipe = reader;
                self.errands.push(Errandsman { request, pipe });
                Ok(())
            }
        }
    }

    /// Reports the errands that are done.
    fn settle_errands(&mut self) -> Outcome {
        let mut index = 0;
        while let Some(errand) = self.errands.get(index) {
            let Some(result) = errand::read_report(&errand.pipe) else {
                index += 1;
                continue;
            };
            let failure = result.err().unwrap_or_else(|| Failure::new("", Errno(0)));
            let done = failure.done(errand.request);
            self.errands.swap_remove(index);
            self.socket.send(&done, None).step("send")?;
        }
        Ok(())
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
