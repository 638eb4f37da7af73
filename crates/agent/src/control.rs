//! What the host asks for, and what it is told.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use cloche_proto::message::{exec_flags, Exec, Step, ToAgent, ToHost};
use cloche_proto::mux::{Mux, TO_AGENT, TO_HOST};

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::freeze::Frozen;
use crate::job::{Input, Job, Output, Stub};
use crate::log;
use crate::setup;
use crate::spawn::{self, Program, SpawnError};
use crate::sys::{self, Errno};
use crate::tty::{self, Unused};
use crate::watch::Watch;

/// Requests are taken only while this much can be told to the host: enough for the ends of all jobs.
const RESERVE: usize = 16384;
/// News that may wait or be left out are told only while this much can be.
const COMFORT: usize = 2 * RESERVE;
const MAX_SYNCS: usize = 16;
const MAX_EARLY_SIGNALS: usize = 16;

/// Messages to the host that must not be lost. It is bounded by the number of jobs, because no requests are taken while
/// anything waits here.
#[derive(Debug, Default)]
pub struct Outbox(VecDeque<Vec<u8>>);

impl Outbox {
    /// Adds a message.
    pub fn push(&mut self, message: &ToHost) {
        match message.encode() {
            Ok(bytes) => self.0.push_back(bytes),
            Err(_) => log::note("a message to the host is too long"),
        }
    }

    /// Sends what fits.
    pub fn flush(&mut self, mux: &mut Mux) {
        while let Some(bytes) = self.0.front() {
            if mux.room(TO_HOST) < bytes.len() {
                return;
            }
            mux.send(TO_HOST, bytes);
            self.0.pop_front();
        }
    }

    /// Sends a message that is not worth waiting for; returns whether it was sent.
    pub fn try_send(&mut self, mux: &mut Mux, message: &ToHost) -> bool {
        if !self.0.is_empty() || mux.room(TO_HOST) < COMFORT {
            return false;
        }
        message
            .encode()
            .is_ok_and(|bytes| mux.send(TO_HOST, &bytes) > 0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A SETUP that waits for a path.
#[derive(Debug)]
pub struct PendingSetup {
    seq: u32,
    steps: Vec<Step>,
    index: usize,
    watch: Watch,
    deadline_ns: u64,
}

impl PendingSetup {
    /// How long the loop may sleep.
    pub fn timeout_ms(&self) -> i32 {
        let left = self.deadline_ns.saturating_sub(now_ns());
        i32::try_from(left.div_ceil(1_000_000)).unwrap_or(i32::MAX)
    }
}

fn now_ns() -> u64 {
    sys::clock_ns(libc::CLOCK_MONOTONIC)
}

impl Agent {
    /// Takes the host's requests out of the control stream.
    pub(crate) fn read_control(&mut self) {
        loop {
            let is_calm = self.outbox.is_empty() && self.room_to_tell() >= RESERVE;
            if self.setup.is_some() || self.status.is_some() || !is_calm {
                return;
            }
            let bytes = self.mux.peek(TO_AGENT);
            if bytes.is_empty() {
                return;
            }
            let taken = if self.control_broken {
                Ok(bytes.len())
            } else {
                self.control.push(bytes)
            };
            match taken {
                Ok(count) => self.mux.consume(TO_AGENT, count),
                Err(error) => {
                    self.control_broken = true;
                    self.warn(&format!("the control stream is malformed: {error}"));
                }
            }
            if let Some(message) = self.control.take() {
                self.obey(&message);
                self.outbox.flush(&mut self.mux);
            }
        }
    }

    fn obey(&mut self, message: &[u8]) {
        match ToAgent::decode(message) {
            Ok(ToAgent::Setup { seq, steps }) => self.set_up(seq, steps, 0),
            Ok(ToAgent::Exec(exec)) => self.exec(*exec),
            Ok(ToAgent::Signal { job, signo }) => self.signal(job, signo),
            Ok(ToAgent::Resize { job, rows, cols }) => self.resize(job, rows, cols),
            Ok(ToAgent::Poweroff) => {
                if self.is_guest {
                    sys::sync();
                    sys::reboot();
                }
                self.status = Some(0);
            }
            Ok(ToAgent::Sync { seq }) => self.sync(seq),
            Err(error) => self.refuse(message, &error.to_string()),
        }
    }

    /// A message that cannot be decoded: whoever waits for its answer gets one.
    fn refuse(&mut self, message: &[u8], reason: &str) {
        let number = match message.get(1..5) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        let what = reason.as_bytes().to_vec();
        let errno = Errno(libc::EBADMSG).code();
        match message.first() {
            Some(1) => {
                self.setup_failed = !self.is_set_up;
                self.outbox.push(&ToHost::SetupFailed {
                    seq: number,
                    step: 0,
                    errno,
                    what,
                });
            }
            Some(2) => self.outbox.push(&ToHost::Failed {
                job: number,
                errno,
                what,
            }),
            _ => self.warn(&format!("a request cannot be read: {reason}")),
        }
    }

    fn warn(&mut self, text: &str) {
        log::note(text);
        let message = ToHost::Log {
            level: 2,
            text: text.as_bytes().to_vec(),
        };
        self.outbox.try_send(&mut self.mux, &message);
    }

    /// Does the steps from `first` on, until one fails or has to wait.
    fn set_up(&mut self, seq: u32, steps: Vec<Step>, first: usize) {
        for (index, step) in steps.iter().enumerate().skip(first) {
            let result = match step {
                Step::Clock { realtime_ns } => {
                    setup::set_clock(*realtime_ns, self.port.heard_ns.take())
                }
                Step::Rlimit {
                    resource,
                    soft,
                    hard,
                } => spawn::remember_limit(&mut self.limits, *resource, *soft, *hard),
                // What is there already needs no watch, which takes an emulated machine long.
                Step::WaitPath { path, .. } if setup::is_there(path) => Ok(()),
                Step::WaitPath { path, timeout_ms } => {
                    match Watch::new(Path::new(OsStr::from_bytes(path))) {
                        Ok(watch) if !watch.is_there() => {
                            let wait_ns = u64::from(*timeout_ms) * 1_000_000;
                            self.wait_for_watch([&watch.names, &watch.devices]);
                            self.setup = Some(PendingSetup {
                                seq,
                                index,
                                watch,
                                deadline_ns: now_ns().saturating_add(wait_ns),
                                steps,
                            });
                            return;
                        }
                        Ok(_) => Ok(()),
                        Err(errno) => Err(errno),
                    }
                }
                Step::Freeze if self.frozen.is_none() => Frozen::new().map(|frozen| {
                    self.frozen = Some(frozen);
                }),
                Step::Freeze => Ok(()),
                Step::Thaw => {
                    if let Some(frozen) = self.frozen.take() {
                        frozen.thaw();
                    }
                    Ok(())
                }
                step => setup::perform(step),
            };
            if let Err(errno) = result {
                return self.set_up_failed(seq, index, errno, step);
            }
        }
        self.setup_failed = false;
        self.is_set_up = true;
        self.outbox.push(&ToHost::SetupDone { seq });
    }

    fn set_up_failed(&mut self, seq: u32, index: usize, errno: Errno, step: &Step) {
        self.setup_failed = !self.is_set_up;
        self.outbox.push(&ToHost::SetupFailed {
            seq,
            step: u32::try_from(index).unwrap_or(u32::MAX),
            errno: errno.code(),
            what: setup::describe(step),
        });
    }

    /// Looks whether the path waited for is there now, or its time is over.
    pub(crate) fn continue_setup(&mut self) {
        let Some(pending) = self.setup.take() else {
            return;
        };
        if pending.watch.is_there() {
            self.set_up(pending.seq, pending.steps, pending.index + 1);
        } else if now_ns() < pending.deadline_ns {
            self.setup = Some(pending);
        } else if let Some(step) = pending.steps.get(pending.index) {
            self.set_up_failed(pending.seq, pending.index, Errno(libc::ETIMEDOUT), step);
        }
    }

    fn sync(&mut self, seq: u32) {
        // Syncing may take long, and everybody else goes on meanwhile.
        let child = if self.syncing.len() < MAX_SYNCS {
            sys::fork(sys::sync)
        } else {
            Err(Errno(libc::EAGAIN))
        };
        match child {
            Ok(pid) => self.syncing.push((pid, seq)),
            Err(_) => {
                sys::sync();
                self.outbox.push(&ToHost::Synced { seq });
            }
        }
    }

    fn job(&mut self, id: u32) -> Option<&mut Job> {
        self.jobs.iter_mut().flatten().find(|job| job.id == id)
    }

    fn signal(&mut self, id: u32, signo: u32) {
        let Ok(signal @ 1..=64) = i32::try_from(signo) else {
            return self.warn(&format!("there is no signal {signo}"));
        };
        // A job that has ended meanwhile is no error: the signal and its end have crossed.
        let Some(job) = self.job(id) else { return };
        match job.pid {
            Some(pid) => {
                let _ = sys::kill_group(pid, signal);
            }
            None if !job.ended && job.early_signals.len() < MAX_EARLY_SIGNALS => {
                job.early_signals.push(signal);
            }
            None => {}
        }
    }

    fn resize(&mut self, id: u32, rows: u16, cols: u16) {
        let terminal = self.job(id).and_then(|job| job.terminal.as_ref());
        if let Some(terminal) = terminal {
            let _ = tty::resize(terminal.as_fd(), rows, cols);
        }
    }

    fn exec(&mut self, exec: Exec) {
        let id = exec.job;
        if self.setup_failed {
            // Asked for together with a set-up that failed: it must not run in half a guest.
            let error = SpawnError::new(Errno(libc::ECANCELED), b"set-up");
            return self.tell_failed(id, &error);
        }
        if self.job(id).is_some() {
            return self.warn(&format!("job {id} exists already"));
        }
        if let Err(error) = self.try_exec(exec) {
            self.tell_failed(id, &error);
        }
    }

    fn tell_failed(&mut self, job: u32, error: &SpawnError) {
        self.outbox.push(&ToHost::Failed {
            job,
            errno: error.errno.code(),
            what: error.what.clone(),
        });
    }

    fn try_exec(&mut self, exec: Exec) -> Result<(), SpawnError> {
        let streams = [exec.stdin, exec.stdout, exec.stderr, exec.keys];
        if streams.iter().any(|id| *id != 0 && self.mux.knows(*id)) {
            return Err(SpawnError::new(Errno(libc::EEXIST), b"stream id"));
        }
        let slot = self.free_slot();
        let slot = slot.ok_or_else(|| SpawnError::new(Errno(libc::EAGAIN), b"number of jobs"))?;
        let flags = exec.flags;
        let (pids_max, size, uid) = (exec.pids_max, (exec.rows, exec.cols), exec.uid);
        let mut job = Job::new(exec.job, streams, flags & exec_flags::LINGER != 0);
        let mut program = Program::new(exec, &self.limits, self.manner)?;
        if pids_max > 0 {
            self.made_cgroups = self.made_cgroups.wrapping_add(1);
            let name = format!("cloche-{}", self.made_cgroups);
            let (group, procs) = Cgroup::new(&name, pids_max)
                .map_err(|errno| SpawnError::new(errno, b"pids_max"))?;
            job.cgroup = Some(group);
            program.cgroup = Some(procs);
        }
        let started = if flags & exec_flags::TTY != 0 {
            self.start_on_terminal(&mut job, &program, size, uid)
                .map(|()| None)
        } else {
            self.start_on_pipes(&mut job, &program).map(Some)
        };
        if started.is_err() {
            drop(job.cgroup.take().map(Cgroup::remove));
        }
        let pid = started?;
        self.jobs[slot] = Some(job);
        self.wait_for_job(slot);
        if let Some(pid) = pid {
            self.program_started(slot, pid);
        }
        Ok(())
    }

    fn start_on_pipes(&mut self, job: &mut Job, program: &Program) -> Result<i32, SpawnError> {
        let failed = |errno| SpawnError::new(errno, b"standard streams");
        let [stdin, stdout, stderr, _] = job.streams;
        let null = self.null_device().map_err(failed)?;
        let mut theirs: [Option<OwnedFd>; 3] = [None, None, None];
        if stdin != 0 {
            let (read, write) = sys::pipe().map_err(failed)?;
            sys::set_nonblocking(write.as_fd()).map_err(failed)?;
            job.inputs[0] = Some(Input::new(stdin, Rc::new(write), false));
            theirs[0] = Some(read);
        }
        for (index, stream) in [stdout, stderr].into_iter().enumerate() {
            if stream == 0 || (index == 1 && stream == stdout) {
                continue;
            }
            let (read, write) = sys::pipe().map_err(failed)?;
            sys::set_nonblocking(read.as_fd()).map_err(failed)?;
            job.outputs[index] = Some(Output::new(stream, Rc::new(read), false));
            theirs[index + 1] = Some(write);
        }
        let [input, output, error] = &theirs;
        let output = output.as_ref().map_or(null.as_fd(), AsFd::as_fd);
        let error = match error {
            None if stderr != 0 => output,
            other => other.as_ref().map_or(null.as_fd(), AsFd::as_fd),
        };
        let input = input.as_ref().map_or(null.as_fd(), AsFd::as_fd);
        let result = program.start([input, output, error], None, &mut self.stack);
        self.null = Some(null);
        result
    }

    fn null_device(&mut self) -> sys::Result<OwnedFd> {
        match self.null.take() {
            Some(null) => Ok(null),
            None => sys::open(c"/dev/null", libc::O_RDWR, 0),
        }
    }

    /// A job's program runs: its streams begin.
    pub(crate) fn program_started(&mut self, slot: usize, pid: i32) {
        let Some(Some(job)) = self.jobs.get_mut(slot) else {
            return;
        };
        job.pid = Some(pid);
        if let Some(frozen) = &self.frozen {
            frozen.add(pid);
        }
        let [stdin, stdout, stderr, keys] = job.streams;
        if stdin != 0 {
            self.mux.open_receiver(stdin);
        }
        if keys != 0 && job.unused.is_none() {
            job.want_keys(&mut self.mux);
        }
        job.look_for_use(&mut self.mux);
        for stream in [stdout, stderr] {
            if stream != 0 {
                self.mux.open_sender(stream);
            }
        }
        for signal in job.early_signals.drain(..) {
            let _ = sys::kill_group(pid, signal);
        }
        self.outbox.push(&ToHost::Started {
            job: job.id,
            pid: pid.unsigned_abs(),
        });
    }

    /// A terminal's stub could not start its program.
    pub(crate) fn program_failed(&mut self, slot: usize, error: &SpawnError) {
        let Some(Some(job)) = self.jobs.get_mut(slot) else {
            return;
        };
        let id = job.id;
        self.drop_job(slot);
        self.tell_failed(id, error);
    }

    fn start_on_terminal(
        &mut self,
        job: &mut Job,
        program: &Program,
        (rows, cols): (u16, u16),
        uid: u32,
    ) -> Result<(), SpawnError> {
        let failed = |errno| SpawnError::new(errno, b"terminal");
        let (master, slave) = tty::open_terminal(rows, cols, uid).map_err(failed)?;
        sys::set_nonblocking(master.as_fd()).map_err(failed)?;
        let master = Rc::new(master);
        let [stdin, stdout, stderr, keys] = job.streams;
        let (mut input, mut error) = (None, None);
        if keys == 0 {
            job.inputs[0] = Some(Input::new(stdin, Rc::clone(&master), true));
        } else if stdin == 0 {
            input = Some(self.null_device().map_err(failed)?);
        } else {
            let (read, write) = sys::pipe().map_err(failed)?;
            sys::set_nonblocking(write.as_fd()).map_err(failed)?;
            job.inputs[0] = Some(Input::new(stdin, Rc::new(write), false));
            input = Some(read);
        }
        if stderr != 0 {
            let (read, write) = sys::pipe().map_err(failed)?;
            sys::set_nonblocking(read.as_fd()).map_err(failed)?;
            job.outputs[1] = Some(Output::new(stderr, Rc::new(read), false));
            error = Some(write);
        }
        if keys != 0 {
            // Without a way to tell, the keys are the program's from its start.
            job.unused = Unused::new(master.as_fd(), !self.is_guest).ok();
        }
        let (pid, socket) = tty::start(program, slave, input, error)?;
        job.outputs[0] = Some(Output::new(stdout, Rc::clone(&master), true));
        job.terminal = Some(master);
        job.stub = Some(Stub { pid, socket });
        Ok(())
    }
}
