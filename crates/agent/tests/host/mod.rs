//! A host for tests: it drives the real agent binary over a Unix socket.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use cloche_proto::frame::Key;
use cloche_proto::message::{exec_flags, Assembler, Exec, ToAgent, ToHost, MAX_TO_HOST};
use cloche_proto::mux::{Mux, TO_AGENT, TO_HOST};

/// Longer than anything here takes; only a test that would hang runs into it.
const PATIENCE_MS: i32 = 120_000;

/// The host's end, with the agent's process.
pub struct Host {
    pub mux: Mux,
    pub agent: Child,
    socket: UnixStream,
    assembler: Assembler,
    /// Messages nobody has asked for yet.
    pub messages: Vec<ToHost>,
    /// What came on the output streams that are read.
    pub output: BTreeMap<u32, Vec<u8>>,
    /// Output streams that are left unread.
    pub unread: BTreeSet<u32>,
    /// What is still to go to input streams; the end follows when `true`.
    input: BTreeMap<u32, (Vec<u8>, usize, bool)>,
    attaches: u32,
    next_stream: u32,
    next_job: u32,
}

fn agent_command(option: &str, stdin: OwnedFd) -> Child {
    Command::new(env!("CARGO_BIN_EXE_cloche-agent"))
        .args([option, "0"])
        .stdin(Stdio::from(stdin))
        .spawn()
        .expect("the agent starts")
}

impl Host {
    /// An agent on one connected socket.
    pub fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let agent = agent_command("--fd", theirs.into());
        let mut host = Self::new(ours, agent);
        host.attach();
        host.wait_for(|host| host.take_ready());
        host
    }

    /// An agent that takes connections on `listener`.
    pub fn start_listening(listener: UnixListener, connect: impl Fn() -> UnixStream) -> Self {
        let agent = agent_command("--listen-fd", listener.into());
        let mut host = Self::new(connect(), agent);
        host.attach();
        host.wait_for(|host| host.take_ready());
        host
    }

    fn new(socket: UnixStream, agent: Child) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        Self {
            mux: Mux::host(),
            agent,
            socket,
            assembler: Assembler::new(MAX_TO_HOST),
            messages: Vec::new(),
            output: BTreeMap::new(),
            unread: BTreeSet::new(),
            input: BTreeMap::new(),
            attaches: 0,
            next_stream: 2,
            next_job: 1,
        }
    }

    fn take_ready(&mut self) -> bool {
        self.take(|message| matches!(message, ToHost::Ready { .. }))
            .is_some()
    }

    /// Sends a preface and ATTACH on the byte stream there is.
    fn attach(&mut self) {
        self.attaches += 1;
        let nonce: Key = format!("{:032x}", u64::from(self.attaches) * 0x1234_5677)
            .as_bytes()
            .try_into()
            .expect("32 digits");
        self.mux.connect(nonce);
    }

    /// Goes on over another connection.
    pub fn reconnect(&mut self, socket: UnixStream) {
        socket.set_nonblocking(true).expect("non-blocking");
        self.socket = socket;
        self.attach();
    }

    pub fn send(&mut self, message: &ToAgent) {
        let bytes = message.encode().expect("a well-formed message");
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.mux.send(TO_AGENT, &bytes[sent..]);
            if sent < bytes.len() {
                self.turn(PATIENCE_MS);
            }
        }
    }

    /// The first message that fits, waited for.
    pub fn expect(&mut self, fits: impl Fn(&ToHost) -> bool) -> ToHost {
        let mut found = None;
        self.wait_for(|host| {
            found = host.take(&fits);
            found.is_some()
        });
        found.expect("waited for")
    }

    pub fn take(&mut self, fits: impl Fn(&ToHost) -> bool) -> Option<ToHost> {
        let index = self.messages.iter().position(fits)?;
        Some(self.messages.remove(index))
    }

    pub fn wait_for(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) {
            self.turn(PATIENCE_MS);
        }
    }

    /// Moves bytes, waiting for the agent when nothing can be moved.
    pub fn turn(&mut self, timeout_ms: i32) {
        self.feed_inputs();
        let had_output = !self.mux.output().is_empty();
        let blocked = self.write();
        // What was written may be all that was waited for.
        if self.read() || (had_output && !blocked) {
            return;
        }
        let write = if blocked { libc::POLLOUT } else { 0 };
        let mut polled = [libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN | write,
            revents: 0,
        }];
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 1, timeout_ms) };
        assert!(ready > 0, "the agent says nothing");
    }

    fn feed_inputs(&mut self) {
        for (stream, (bytes, sent, end)) in &mut self.input {
            *sent += self.mux.send(*stream, &bytes[*sent..]);
            // Nothing is said on an input stream before its first credit.
            let has_credit = *sent > 0 || self.mux.room(*stream) > 0;
            if *sent == bytes.len() && *end && has_credit {
                self.mux.finish(*stream, false);
            }
        }
    }

    /// Writes what there is; returns whether the socket is full.
    fn write(&mut self) -> bool {
        loop {
            let bytes = self.mux.output();
            if bytes.is_empty() {
                return false;
            }
            match self.socket.write(bytes) {
                Ok(count) => self.mux.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => panic!("the agent is gone: {error}"),
            }
        }
    }

    /// Writes everything there is to write, without reading.
    pub fn write_all(&mut self) {
        while self.write() {}
    }

    /// Writes at most `count` bytes, so that a frame may end in the middle.
    pub fn write_some(&mut self, count: usize) {
        let bytes = self.mux.output();
        let bytes = &bytes[..bytes.len().min(count)];
        if let Ok(count) = self.socket.write(bytes) {
            self.mux.sent(count);
        }
    }

    /// Reads once; returns whether anything came.
    fn read(&mut self) -> bool {
        match self.socket.read(self.mux.input_space()) {
            Ok(0) => panic!("the agent has hung up"),
            Ok(count) => self.mux.received(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("the agent is gone: {error}"),
        }
        while self
            .mux
            .next_event(&mut |_, _| 0)
            .expect("the agent keeps to the protocol")
            .is_some()
        {}
        self.drain();
        true
    }

    fn drain(&mut self) {
        let streams: Vec<u32> = self.output.keys().copied().collect();
        for stream in streams.into_iter().chain([TO_HOST]) {
            if self.unread.contains(&stream) {
                continue;
            }
            loop {
                let bytes = self.mux.peek(stream).to_vec();
                if bytes.is_empty() {
                    break;
                }
                self.mux.consume(stream, bytes.len());
                if stream == TO_HOST {
                    self.read_messages(&bytes);
                } else {
                    self.output.entry(stream).or_default().extend(bytes);
                }
            }
        }
    }

    fn read_messages(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = self.assembler.push(bytes).expect("sane lengths");
            bytes = &bytes[count..];
            if let Some(message) = self.assembler.take() {
                self.messages
                    .push(ToHost::decode(&message).expect("a well-formed message"));
            }
        }
    }

    /// A job with all its streams; returns its request, to be changed and given to [`Host::exec`].
    pub fn request(&mut self, argv: &[&str]) -> Exec {
        let base = self.next_stream;
        self.next_stream += 6;
        self.next_job += 1;
        // SAFETY: no arguments.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        Exec {
            job: self.next_job,
            stdin: base,
            stdout: base + 1,
            stderr: base + 3,
            flags: 0,
            rows: 0,
            cols: 0,
            uid,
            gid,
            umask: 0o022,
            groups: Vec::new(),
            pids_max: 0,
            cwd: b"/".to_vec(),
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/usr/bin:/bin".to_vec(), b"LC_ALL=C".to_vec()],
            program: Vec::new(),
            keys: 0,
            ignored: 0,
            nice: 0,
        }
    }

    pub fn shell(&mut self, script: &str) -> Exec {
        self.request(&["sh", "-c", script])
    }

    pub fn on_terminal(mut exec: Exec) -> Exec {
        exec.flags |= exec_flags::TTY;
        exec.stderr = 0;
        exec.rows = 24;
        exec.cols = 80;
        exec
    }

    /// Starts a job without waiting for anything.
    pub fn exec(&mut self, exec: &Exec) {
        for stream in [exec.stdout, exec.stderr] {
            if stream != 0 && !self.output.contains_key(&stream) {
                self.mux.open_receiver(stream);
                self.output.insert(stream, Vec::new());
            }
        }
        for stream in [exec.stdin, exec.keys] {
            if stream != 0 {
                self.mux.open_sender(stream);
            }
        }
        self.send(&ToAgent::Exec(Box::new(exec.clone())));
    }

    /// Starts a job and waits until it runs; returns its process id.
    pub fn exec_started(&mut self, exec: &Exec) -> u32 {
        self.exec(exec);
        let id = exec.job;
        match self.expect(|message| matches!(message, ToHost::Started { job, .. } | ToHost::Failed { job, .. } if *job == id)) {
            ToHost::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Hands bytes to an input stream, followed by its end when asked for.
    pub fn feed(&mut self, stream: u32, bytes: &[u8], end: bool) {
        let entry = self.input.entry(stream).or_default();
        entry.0.extend_from_slice(bytes);
        entry.2 |= end;
    }

    /// Waits for a job's end and the end of its output. Returns `(kind, value)` and what came on both.
    pub fn finish(&mut self, exec: &Exec) -> ((u8, u32), Vec<u8>, Vec<u8>) {
        let id = exec.job;
        let end = match self.expect(
            |m| matches!(m, ToHost::Exited { job, .. } | ToHost::Failed { job, .. } if *job == id),
        ) {
            ToHost::Exited { kind, value, .. } => (kind, value),
            other => panic!("{other:?}"),
        };
        let streams = [exec.stdout, exec.stderr];
        self.wait_for(|host| {
            let mut open = streams.iter().filter(|id| **id != 0);
            !open.any(|id| host.mux.knows(*id))
        });
        let mut take = |stream| self.output.remove(&stream).unwrap_or_default();
        (end, take(exec.stdout), take(exec.stderr))
    }

    /// Runs a job with an empty standard input to its end.
    pub fn run(&mut self, exec: &Exec) -> ((u8, u32), Vec<u8>, Vec<u8>) {
        self.exec(exec);
        if exec.stdin != 0 {
            self.feed(exec.stdin, b"", true);
        }
        self.finish(exec)
    }

    /// Forgets the streams of a job that was not started, or waits until they have ended.
    pub fn abandon(&mut self, exec: &Exec) {
        let is_started = self
            .take(|m| matches!(m, ToHost::Started { job, .. } if *job == exec.job))
            .is_some();
        self.input.remove(&exec.stdin);
        let streams: Vec<u32> = [exec.stdin, exec.stdout, exec.stderr, exec.keys]
            .into_iter()
            .filter(|stream| *stream != 0)
            .collect();
        if is_started {
            self.wait_for(|host| !streams.iter().any(|stream| host.mux.knows(*stream)));
        } else {
            streams.iter().for_each(|stream| self.mux.forget(*stream));
        }
    }

    /// The agent's answer to an EXEC that cannot be done.
    pub fn failure(&mut self, exec: &Exec) -> (u32, String) {
        self.exec(exec);
        let id = exec.job;
        match self.expect(
            |m| matches!(m, ToHost::Started { job, .. } | ToHost::Failed { job, .. } if *job == id),
        ) {
            ToHost::Failed { errno, what, .. } => {
                self.abandon(exec);
                (errno, String::from_utf8_lossy(&what).into_owned())
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever a test left running ends with its agent.
        if matches!(self.agent.try_wait(), Ok(None)) {
            // SAFETY: a signal to our own child that was not waited for.
            unsafe {
                libc::kill(
                    self.agent.id().try_into().expect("a process id"),
                    libc::SIGTERM,
                )
            };
            self.agent.wait().ok();
        }
    }
}
