//! The loop: one thread, one epoll instance, no timers but those of a step that waits.

use std::os::fd::{AsFd, OwnedFd};

use cloche_proto::frame::{Key, KEY_SIZE};
use cloche_proto::message::{Assembler, ToHost, MAX_JOBS, MAX_TO_AGENT};
use cloche_proto::mux::{Mux, TO_HOST};

use crate::cgroup::Cgroup;
use crate::control::{Outbox, PendingSetup};
use crate::freeze::Frozen;
use crate::job::{Job, Part};
use crate::log;
use crate::port::Port;
use crate::spawn::{Limit, Manner, SpawnError, Stack};
use crate::sys::{self, Change, Errno, Result, Usage, Waited};
use crate::tty::{self, Report};

/// Children reaped, or reports of a stub read, before everything else has its turn.
const REAP_TURN: usize = 256;

/// Token of the way to the host.
pub(crate) const PORT: u64 = 0;
const LISTENER: u64 = 1;
const SIGNALS: u64 = 2;
const WATCH: u64 = 3;
/// From here on a token is a job's slot and one of its parts.
const JOBS: u64 = 16;
const PARTS: [Part; 6] = [
    Part::Stdin,
    Part::Stdout,
    Part::Stderr,
    Part::Terminal,
    Part::Stub,
    Part::Keys,
];

/// Everything the agent is.
#[derive(Debug)]
pub struct Agent {
    pub(crate) mux: Mux,
    pub(crate) jobs: Vec<Option<Job>>,
    pub(crate) outbox: Outbox,
    pub(crate) control: Assembler,
    /// The control stream cannot be read on.
    pub(crate) control_broken: bool,
    pub(crate) setup: Option<PendingSetup>,
    /// The last SETUP failed: no program may run in what it left.
    pub(crate) setup_failed: bool,
    /// A SETUP has succeeded: the failure of another one keeps no program from starting.
    pub(crate) is_set_up: bool,
    pub(crate) limits: Vec<Limit>,
    pub(crate) manner: Manner,
    pub(crate) stack: Stack,
    pub(crate) null: Option<OwnedFd>,
    /// Children that sync, with the number to answer.
    pub(crate) syncing: Vec<(i32, u32)>,
    pub(crate) made_cgroups: u32,
    /// Set when the loop is to end, to the agent's exit status.
    pub(crate) status: Option<i32>,
    pub(crate) is_guest: bool,
    pub(crate) epoll: OwnedFd,
    signals: OwnedFd,
    pub(crate) port: Port,
    reap_more: bool,
    /// A stub may have more to say.
    read_more_reports: bool,
    /// Groups that still had processes when their job was over.
    full_cgroups: Vec<Cgroup>,
    /// How often the kernel had killed for want of memory when it was last asked.
    oom_kills: u64,
    pub(crate) said_ready: bool,
    /// Programs stand still.
    pub(crate) frozen: Option<Frozen>,
}

impl Agent {
    /// Gets everything ready to serve `port`.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance or signal descriptor.
    pub fn new(port: Port, own_session: bool, is_guest: bool) -> Result<Self> {
        let epoll = sys::epoll_create()?;
        let signals = if is_guest {
            // A program that has written something goes on until it waits for more: two changes of the address space
            // less for each piece that passes, and emulation is slow at these.
            sys::run_after_others();
            sys::signal_fd(&[libc::SIGCHLD])?
        } else {
            sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?
        };
        let interest = libc::EPOLLIN;
        sys::epoll_set(epoll.as_fd(), signals.as_fd(), SIGNALS, interest, false)?;
        if let Some(fd) = &port.fd {
            sys::epoll_set(epoll.as_fd(), fd.as_fd(), PORT, interest, false)?;
        }
        if let Some(fd) = &port.listener {
            sys::epoll_set(epoll.as_fd(), fd.as_fd(), LISTENER, interest, false)?;
        }
        Ok(Self {
            mux: Mux::agent(session_key()),
            jobs: Vec::new(),
            outbox: Outbox::default(),
            control: Assembler::new(MAX_TO_AGENT),
            control_broken: false,
            setup: None,
            setup_failed: false,
            is_set_up: false,
            limits: Vec::new(),
            manner: Manner {
                own_session,
                own_ids: sys::own_ids(),
                waits_for_programs: is_guest,
            },
            stack: Stack::new(),
            null: None,
            syncing: Vec::new(),
            made_cgroups: 0,
            status: None,
            is_guest,
            epoll,
            signals,
            port,
            reap_more: false,
            read_more_reports: false,
            full_cgroups: Vec::new(),
            // A fresh guest starts at 0; elsewhere the count is that of the whole machine since its start.
            oom_kills: if is_guest { 0 } else { count_oom_kills() },
            said_ready: false,
            frozen: None,
        })
    }

    /// Serves until the host ends it. Returns the exit status.
    pub fn run(&mut self) -> i32 {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        loop {
            self.turn();
            if let Some(status) = self.status {
                self.kill_jobs();
                return status;
            }
            let timeout = self.timeout();
            for event in sys::epoll_wait(self.epoll.as_fd(), &mut events, timeout) {
                self.note(event.u64, event.events);
            }
        }
    }

    /// Does everything that can be done without waiting, once around.
    fn turn(&mut self) {
        if self.reap_more {
            self.reap();
        }
        if std::mem::take(&mut self.read_more_reports) {
            (0..self.jobs.len()).for_each(|slot| self.read_reports(slot));
        }
        self.read_port();
        self.continue_setup();
        self.read_control();
        for job in self.jobs.iter_mut().flatten() {
            job.pump(&mut self.mux);
        }
        self.drop_jobs_that_are_over();
        self.tell();
        self.write_port();
    }

    fn timeout(&self) -> i32 {
        let read = self.port.readable && self.port.fd.is_some();
        let can_move = |job: &Job| job.can_move(&self.mux) || job.is_over(&self.mux);
        if self.reap_more
            || self.read_more_reports
            || read
            || self.jobs.iter().flatten().any(can_move)
        {
            return 0;
        }
        self.setup.as_ref().map_or(-1, PendingSetup::timeout_ms)
    }

    fn note(&mut self, token: u64, events: u32) {
        match token {
            PORT => {
                self.port.readable = true;
                self.port.writable |= events & (libc::EPOLLOUT | libc::EPOLLERR) as u32 != 0;
            }
            LISTENER => self.accept(),
            SIGNALS => {
                if sys::read_signals(self.signals.as_fd()) {
                    self.status = Some(0);
                }
                self.reap_more = true;
            }
            // The step looks again by itself.
            WATCH => {}
            _ => self.note_job(token - JOBS, events),
        }
    }

    fn note_job(&mut self, token: u64, events: u32) {
        let count = PARTS.len() as u64;
        let slot = usize::try_from(token / count).unwrap_or(usize::MAX);
        let part = PARTS[(token % count) as usize];
        let Some(Some(job)) = self.jobs.get_mut(slot) else {
            return;
        };
        if part == Part::Stub {
            self.read_reports(slot);
        } else {
            job.note(part, events, &mut self.mux);
        }
    }

    /// Waits for the descriptors of a job that was just made.
    pub(crate) fn wait_for_job(&self, slot: usize) {
        let Some(Some(job)) = self.jobs.get(slot) else {
            return;
        };
        for (part, fd, interest) in job.waits() {
            let index = PARTS.iter().position(|known| *known == part).unwrap_or(0);
            let token = JOBS + (slot * PARTS.len() + index) as u64;
            if sys::epoll_set(self.epoll.as_fd(), fd, token, interest, false).is_err() {
                log::note("a descriptor cannot be waited for");
            }
        }
    }

    /// Waits for what a step of SETUP waits for.
    pub(crate) fn wait_for_watch(&self, fds: [&OwnedFd; 2]) {
        for fd in fds {
            // Added twice when there are no device events, which is an error that does not matter.
            let _ = sys::epoll_set(self.epoll.as_fd(), fd.as_fd(), WATCH, libc::EPOLLIN, false);
        }
    }

    fn reap(&mut self) {
        for _ in 0..REAP_TURN {
            let Some(waited) = sys::wait_any(false) else {
                self.reap_more = false;
                return;
            };
            self.child_changed(&waited);
        }
    }

    fn child_changed(&mut self, waited: &Waited) {
        let ended = matches!(waited.change, Change::Exited(_) | Change::Killed(_));
        if ended {
            if let Some(index) = self.syncing.iter().position(|(pid, _)| *pid == waited.pid) {
                let (_, seq) = self.syncing.swap_remove(index);
                self.outbox.push(&ToHost::Synced { seq });
                return;
            }
        }
        let jobs = self.jobs.iter().enumerate();
        let mut known = jobs.filter_map(|(slot, job)| Some((slot, job.as_ref()?)));
        // A program on a terminal is a child of the agent only when its stub is dead.
        let job = known.find(|(_, job)| {
            job.pid == Some(waited.pid) || job.stub.as_ref().is_some_and(|s| s.pid == waited.pid)
        });
        let Some((slot, job)) = job else { return };
        if job.pid == Some(waited.pid) {
            self.program_changed(slot, waited.change, waited.usage);
        } else if ended {
            self.read_reports(slot);
            self.stub_ended(slot);
        }
    }

    /// What a terminal's stub has to say.
    fn read_reports(&mut self, slot: usize) {
        for _ in 0..REAP_TURN {
            let Some(Some(job)) = self.jobs.get_mut(slot) else {
                return;
            };
            let Some(stub) = &job.stub else { return };
            match tty::next_report(stub.socket.as_fd()) {
                None => return,
                Some(Report::Started(pid)) => self.program_started(slot, pid),
                Some(Report::Failed(error)) => self.program_failed(slot, &error),
                Some(Report::Changed(change, usage)) => self.program_changed(slot, change, usage),
            }
        }
        self.read_more_reports = true;
    }

    /// Somebody has killed the stub. Its program, if it was started, has become the agent's own child, and its end is
    /// still to come; or its end was reaped with the stub's.
    fn stub_ended(&mut self, slot: usize) {
        let Some(Some(job)) = self.jobs.get_mut(slot) else {
            return;
        };
        match job.pid {
            _ if job.ended => {}
            Some(pid) if sys::is_child(pid) => {}
            Some(_) => {
                self.program_changed(slot, Change::Killed(libc::SIGKILL), Usage::default());
            }
            // Killed before it could say that the program runs: without its terminal it will not for long.
            None => {
                let error = SpawnError::new(Errno(libc::ECHILD), b"terminal");
                self.program_failed(slot, &error);
            }
        }
    }

    fn program_changed(&mut self, slot: usize, change: Change, usage: Usage) {
        let Some(Some(job)) = self.jobs.get_mut(slot) else {
            return;
        };
        let id = job.id;
        let (kind, value) = match change {
            Change::Stopped(signal) => {
                job.news = Some(ToHost::Stopped {
                    job: id,
                    signo: signal.unsigned_abs(),
                });
                return;
            }
            Change::Continued => {
                job.news = Some(ToHost::Continued { job: id });
                return;
            }
            Change::Exited(status) => (0, status.unsigned_abs()),
            Change::Killed(signal) => (1, signal.unsigned_abs()),
        };
        if job.ended {
            return;
        }
        job.news = None;
        job.end(&mut self.mux);
        // A shell whose command was killed exits with 137 itself.
        let by_kill = matches!((kind, value), (1, 9) | (0, 137));
        let oom = by_kill && self.memory_ran_out();
        self.outbox.push(&ToHost::Exited {
            job: id,
            kind,
            value,
            oom,
            user_ns: usage.user_ns,
            sys_ns: usage.sys_ns,
            maxrss_bytes: usage.maxrss_bytes,
        });
    }

    /// Whether the kernel has killed for want of memory since this was last asked.
    fn memory_ran_out(&mut self) -> bool {
        let kills = count_oom_kills();
        let more = kills > self.oom_kills;
        self.oom_kills = kills;
        more
    }

    /// Forgets a job.
    pub(crate) fn drop_job(&mut self, slot: usize) {
        let Some(job) = self.jobs.get_mut(slot).and_then(Option::take) else {
            return;
        };
        self.full_cgroups.extend(job.cgroup);
        let groups = std::mem::take(&mut self.full_cgroups);
        let full = groups.into_iter().filter_map(Cgroup::remove);
        self.full_cgroups = full.collect();
    }

    fn drop_jobs_that_are_over(&mut self) {
        for slot in 0..self.jobs.len() {
            let job = self.jobs[slot].as_ref();
            if job.is_some_and(|job| job.is_over(&self.mux)) {
                self.drop_job(slot);
            }
        }
    }

    /// A free place for a job; `None` when there are as many as there may be.
    pub(crate) fn free_slot(&mut self) -> Option<usize> {
        if self.jobs.len() == MAX_JOBS {
            // The last word of a job may have come just before.
            self.drop_jobs_that_are_over();
        }
        if let Some(slot) = self.jobs.iter().position(Option::is_none) {
            return Some(slot);
        }
        (self.jobs.len() < MAX_JOBS).then(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        })
    }

    /// Puts what is to be told into the control stream, as far as there is room.
    fn tell(&mut self) {
        self.outbox.flush(&mut self.mux);
        for job in self.jobs.iter_mut().flatten() {
            if let Some(news) = job.news.take() {
                if !self.outbox.try_send(&mut self.mux, &news) {
                    job.news = Some(news);
                    return;
                }
            }
        }
    }

    fn kill_jobs(&mut self) {
        for job in self.jobs.iter().flatten() {
            if let Some(pid) = job.pid {
                let _ = sys::kill_group(pid, libc::SIGKILL);
            }
        }
    }

    /// How much room for messages to the host is left.
    pub(crate) fn room_to_tell(&self) -> usize {
        self.mux.room(TO_HOST)
    }
}

/// 32 hexadecimal digits that nobody can guess.
fn session_key() -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0; KEY_SIZE];
    sys::random(&mut random);
    random.map(|byte| DIGITS[usize::from(byte % 16)])
}

/// How often the kernel has killed a process because memory ran out.
fn count_oom_kills() -> u64 {
    let text = std::fs::read("/proc/vmstat").unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"oom_kill "))
        .and_then(|count| std::str::from_utf8(count).ok()?.parse().ok())
        .unwrap_or(0)
}
