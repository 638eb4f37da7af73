//! Jobs: the programs the host has started, and the pumps between their descriptors and the channel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use cloche_proto::message::ToHost;
use cloche_proto::mux::Mux;

use crate::cgroup::Cgroup;
use crate::sys::{self, Errno};
use crate::tty::Unused;

/// Most bytes moved for one stream before the others have their turn.
const TURN: usize = 65536;
/// A pipe through which this much comes at once is made larger.
const BUSY: usize = 16384;
/// Size of a busy pipe.
const BUSY_PIPE_SIZE: i32 = 262_144;
/// Most bytes read from a terminal after its program has ended.
const TERMINAL_REST: usize = 131_072;

/// Which of a job's descriptors an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Standard input.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both directions of a terminal.
    Terminal,
    /// The socket of a terminal's stub.
    Stub,
    /// Whether a terminal's keys are wanted.
    Keys,
}

/// The way from the channel to a program's standard input.
#[derive(Debug)]
pub struct Input {
    stream: u32,
    fd: Rc<OwnedFd>,
    ready: bool,
    is_terminal: bool,
    is_large: bool,
}

/// The way from a program's standard output or error to the channel.
#[derive(Debug)]
pub struct Output {
    stream: u32,
    fd: Rc<OwnedFd>,
    ready: bool,
    is_terminal: bool,
    is_large: bool,
    /// Nobody has the other end open any more.
    hung_up: bool,
    /// The program has ended: this many more bytes are read, and then no more.
    rest: Option<usize>,
}

impl Input {
    /// A pump into `fd`.
    pub fn new(stream: u32, fd: Rc<OwnedFd>, is_terminal: bool) -> Self {
        Self {
            stream,
            fd,
            ready: true,
            is_terminal,
            is_large: false,
        }
    }

    /// Writes what can be written. Returns how much, or that nobody reads any more.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Gone> {
        let mut done = 0;
        while self.ready && done < bytes.len() {
            match sys::write(self.fd.as_fd(), &bytes[done..]) {
                Ok(count) => done += count,
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => {
                    self.ready = false;
                    self.enlarge();
                }
                Err(_) => return Err(Gone),
            }
        }
        Ok(done)
    }

    fn enlarge(&mut self) {
        if !self.is_large && !self.is_terminal {
            self.is_large = true;
            sys::set_pipe_size(self.fd.as_fd(), BUSY_PIPE_SIZE);
        }
    }
}

impl Output {
    /// A pump out of `fd`.
    pub fn new(stream: u32, fd: Rc<OwnedFd>, is_terminal: bool) -> Self {
        Self {
            stream,
            fd,
            ready: false,
            is_terminal,
            is_large: false,
            hung_up: false,
            rest: None,
        }
    }

    /// The program has ended: only what waits now is still read.
    fn end_soon(&mut self) {
        let waiting = if self.is_terminal {
            TERMINAL_REST
        } else {
            sys::bytes_waiting(self.fd.as_fd()).unwrap_or(0)
        };
        self.rest = Some(waiting);
        self.ready = true;
    }

    /// Reads into the channel as far as there is credit. Returns whether the output has ended.
    fn pump(&mut self, mux: &mut Mux) -> bool {
        let mut left = TURN;
        while self.ready && left > 0 {
            if self.rest == Some(0) {
                return true;
            }
            let want = left.min(self.rest.unwrap_or(left));
            let space = mux.spare(self.stream, want);
            let wanted = space.len();
            if wanted == 0 {
                return false;
            }
            match sys::read(self.fd.as_fd(), space) {
                Ok(0) => return true,
                Ok(count) => {
                    mux.commit(self.stream, count);
                    left -= count;
                    self.after_read(count, wanted);
                }
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => {
                    self.ready = false;
                    return self.rest.is_some();
                }
                // A terminal that nobody has open any more says EIO.
                Err(_) => return true,
            }
        }
        false
    }

    fn after_read(&mut self, count: usize, wanted: usize) {
        if let Some(rest) = &mut self.rest {
            *rest -= count;
        } else if count < wanted && !self.is_terminal && !self.hung_up {
            // A pipe that gave less than asked for is empty; the next byte makes a new event.
            self.ready = false;
        }
        if count >= BUSY && !self.is_large && !self.is_terminal {
            self.is_large = true;
            sys::set_pipe_size(self.fd.as_fd(), BUSY_PIPE_SIZE);
        }
    }
}

/// Nobody reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gone;

/// The process between the agent and a program on a terminal.
#[derive(Debug)]
pub struct Stub {
    /// Its process id.
    pub pid: i32,
    /// Where its reports come from.
    pub socket: OwnedFd,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    /// The host's number.
    pub id: u32,
    /// The program, and its process group, while it runs.
    pub pid: Option<i32>,
    /// It was started (or is not going to be), and has ended.
    pub ended: bool,
    /// The job's streams: standard input, output and error, and what is typed beside them; 0 for none.
    pub streams: [u32; 4],
    /// Outputs live on after the program.
    pub lingers: bool,
    /// Standard input, and what is typed on a terminal that is not the standard input.
    pub inputs: [Option<Input>; 2],
    /// The latter, until a program wants it.
    pub unused: Option<Unused>,
    /// Standard output and error.
    pub outputs: [Option<Output>; 2],
    /// The terminal.
    pub terminal: Option<Rc<OwnedFd>>,
    /// The terminal's stub.
    pub stub: Option<Stub>,
    /// What limits its processes.
    pub cgroup: Option<Cgroup>,
    /// Signals that came before the program was started.
    pub early_signals: Vec<i32>,
    /// Its last stop or continuation, not told yet.
    pub news: Option<ToHost>,
}

impl Job {
    /// A job about to be started.
    pub fn new(id: u32, streams: [u32; 4], lingers: bool) -> Self {
        Self {
            id,
            pid: None,
            ended: false,
            streams,
            lingers,
            inputs: [None, None],
            unused: None,
            outputs: [None, None],
            terminal: None,
            stub: None,
            cgroup: None,
            early_signals: Vec::new(),
            news: None,
        }
    }

    /// Notes what epoll has seen.
    pub fn note(&mut self, part: Part, events: u32, mux: &mut Mux) {
        let has = |flags: i32| events & flags as u32 != 0;
        let readable = has(libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR);
        let hung_up = has(libc::EPOLLHUP);
        let output = match part {
            Part::Stdout | Part::Terminal => &mut self.outputs[0],
            Part::Stderr => &mut self.outputs[1],
            Part::Stdin | Part::Stub | Part::Keys => &mut None,
        };
        if let Some(output) = output {
            output.ready |= readable;
            output.hung_up |= hung_up;
        }
        match part {
            Part::Terminal => {
                let typed = self.inputs.iter_mut().flatten();
                for input in typed.filter(|input| input.is_terminal) {
                    input.ready |= has(libc::EPOLLOUT);
                }
            }
            Part::Stdin => {
                if let Some(input) = &mut self.inputs[0] {
                    input.ready |= has(libc::EPOLLOUT);
                }
                if has(libc::EPOLLERR) {
                    self.stop_input(0, mux);
                }
            }
            Part::Keys => self.look_for_use(mux),
            Part::Stdout | Part::Stderr | Part::Stub => {}
        }
    }

    /// An input stream has no reader any more.
    fn stop_input(&mut self, index: usize, mux: &mut Mux) {
        if let Some(input) = self.inputs[index].take() {
            mux.stop(input.stream);
        }
    }

    fn stop_inputs(&mut self, mux: &mut Mux) {
        // Nobody will want it any more; the host waits for its first credit.
        if self.unused.take().is_some() {
            let [.., keys] = self.streams;
            mux.open_receiver(keys);
            mux.stop(keys);
        }
        for index in 0..self.inputs.len() {
            self.stop_input(index, mux);
        }
    }

    /// Asks the host for what is typed when the program has begun to use its terminal.
    pub fn look_for_use(&mut self, mux: &mut Mux) {
        let (Some(unused), Some(terminal)) = (&self.unused, &self.terminal) else {
            return;
        };
        if self.pid.is_some() && unused.is_used_now(terminal.as_fd()) {
            self.want_keys(mux);
        }
    }

    /// Asks the host for what is typed on the terminal beside the standard input.
    pub fn want_keys(&mut self, mux: &mut Mux) {
        let [.., keys] = self.streams;
        if let Some(terminal) = &self.terminal {
            self.inputs[1] = Some(Input::new(keys, Rc::clone(terminal), true));
            mux.open_receiver(keys);
        }
        self.unused = None;
    }

    /// Bytes for this stream came, and none wait before them: takes what the program takes at once.
    pub fn write_now(&mut self, stream: u32, bytes: &[u8]) -> usize {
        let mut inputs = self.inputs.iter_mut().flatten();
        let input = inputs.find(|input| input.stream == stream);
        // When nobody reads, the rest is kept; the pump finds the same and stops the stream.
        input.map_or(0, |input| input.write(bytes).unwrap_or(0))
    }

    /// Moves bytes both ways.
    pub fn pump(&mut self, mux: &mut Mux) {
        if !self.is_starting() {
            for index in 0..self.inputs.len() {
                self.pump_input(index, mux);
            }
        }
        // Before the output that may follow from it, so that the host hears of it first.
        if self.outputs[0].as_ref().is_some_and(|output| output.ready) {
            self.look_for_use(mux);
        }
        for index in 0..self.outputs.len() {
            let ended = match &mut self.outputs[index] {
                Some(output) => output.pump(mux),
                None => false,
            };
            if ended {
                if let Some(output) = self.outputs[index].take() {
                    mux.finish(output.stream, false);
                }
                self.after_terminal(mux);
            }
        }
    }

    /// Nobody knows yet whether the program runs: its streams are none yet, and not at their ends.
    fn is_starting(&self) -> bool {
        self.pid.is_none() && !self.ended
    }

    fn pump_input(&mut self, index: usize, mux: &mut Mux) {
        let Some(input) = &mut self.inputs[index] else {
            return;
        };
        let mut left = TURN;
        while input.ready && left > 0 {
            let bytes = mux.peek(input.stream);
            let bytes = &bytes[..bytes.len().min(left)];
            if bytes.is_empty() {
                break;
            }
            match input.write(bytes) {
                Ok(count) => {
                    mux.consume(input.stream, count);
                    left -= count;
                }
                Err(Gone) => return self.stop_input(index, mux),
            }
        }
        // The end of what was typed is no end of the terminal: it stays open for the program's output.
        if mux.is_at_end(input.stream) && !input.is_terminal {
            self.inputs[index] = None;
        }
    }

    /// When a terminal's output has ended, or its reader is gone, so is the terminal.
    fn after_terminal(&mut self, mux: &mut Mux) {
        if self.terminal.is_none() || self.outputs[0].is_some() {
            return;
        }
        self.stop_inputs(mux);
        self.terminal = None;
        if self.ended {
            self.stub = None;
        }
    }

    /// The host does not read an output any more: the program gets SIGPIPE (or a hangup) at its next write.
    pub fn stop_output(&mut self, stream: u32, mux: &mut Mux) {
        for index in 0..self.outputs.len() {
            if self.outputs[index]
                .as_ref()
                .is_some_and(|output| output.stream == stream)
            {
                self.outputs[index] = None;
                self.after_terminal(mux);
            }
        }
    }

    /// The program has ended.
    pub fn end(&mut self, mux: &mut Mux) {
        self.ended = true;
        self.pid = None;
        if self.lingers {
            if self.terminal.is_none() && self.outputs.iter().all(Option::is_none) {
                self.stub = None;
            }
            return;
        }
        self.outputs.iter_mut().flatten().for_each(Output::end_soon);
        if self.terminal.is_none() {
            self.stop_inputs(mux);
            self.stub = None;
        }
    }

    /// Whether [`Job::pump`] could move something now.
    pub fn can_move(&self, mux: &Mux) -> bool {
        let can_write = |input: &Input| {
            input.ready && !mux.peek(input.stream).is_empty()
                || (!input.is_terminal && mux.is_at_end(input.stream))
        };
        let can_read = |output: &Output| {
            output.ready && (output.rest == Some(0) || mux.room(output.stream) > 0)
        };
        (!self.is_starting() && self.inputs.iter().flatten().any(can_write))
            || self.outputs.iter().flatten().any(can_read)
    }

    /// Whether nothing is left of it, neither here nor on the channel.
    pub fn is_over(&self, mux: &Mux) -> bool {
        self.ended
            && self.outputs.iter().all(Option::is_none)
            && self.streams.iter().all(|id| *id == 0 || !mux.knows(*id))
    }

    /// Descriptors to wait for, with what to wait for.
    pub fn waits(&self) -> Vec<(Part, BorrowedFd<'_>, i32)> {
        let mut out = Vec::with_capacity(4);
        if let Some(terminal) = &self.terminal {
            let both = libc::EPOLLIN | libc::EPOLLOUT;
            out.push((Part::Terminal, terminal.as_fd(), both));
        }
        // What is the terminal's is waited for above.
        if let Some(input) = self.inputs[0].as_ref().filter(|input| !input.is_terminal) {
            out.push((Part::Stdin, input.fd.as_fd(), libc::EPOLLOUT));
        }
        let parts = [Part::Stdout, Part::Stderr];
        for (part, output) in parts.into_iter().zip(&self.outputs) {
            if let Some(output) = output.as_ref().filter(|output| !output.is_terminal) {
                out.push((part, output.fd.as_fd(), libc::EPOLLIN));
            }
        }
        if let Some(opens) = self
            .unused
            .as_ref()
            .and_then(|unused| unused.opens.as_ref())
        {
            out.push((Part::Keys, opens.as_fd(), libc::EPOLLIN));
        }
        if let Some(stub) = &self.stub {
            out.push((Part::Stub, stub.socket.as_fd(), libc::EPOLLIN));
        }
        out
    }
}
