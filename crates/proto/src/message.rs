//! Control messages inside streams 0 and 1 (`protocol/README.md`, section 5).

pub use crate::assembler::Assembler;
use crate::codec::{CodecError, Reader, Result, Writer};
pub use crate::step::Step;

/// Largest message to the agent: type and body, in bytes.
pub const MAX_TO_AGENT: usize = 4 << 20;
/// Largest message to the host: type and body, in bytes.
pub const MAX_TO_HOST: usize = 64 << 10;
/// Most jobs at a time.
pub const MAX_JOBS: usize = 96;
/// The lowest priority a program can have; higher ones than the usual, 0, are not given.
pub const MAX_NICE: u8 = 19;
/// Signals that nobody can ignore: SIGKILL and SIGSTOP, as bits of [`Exec::ignored`].
const NEVER_IGNORED: u64 = 1 << 8 | 1 << 18;

/// Bits of [`Exec::flags`].
pub mod exec_flags {
    /// The program gets a pseudo-terminal.
    pub const TTY: u32 = 1;
    /// The program runs under the guest's own strace.
    pub const STRACE: u32 = 2;
    /// Output streams live on until everybody who holds them has closed them.
    pub const LINGER: u32 = 4;
    /// Every bit with a meaning.
    pub const ALL: u32 = 7;
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The host's number for this job.
    pub job: u32,
    /// Stream of its standard input; 0: /dev/null.
    pub stdin: u32,
    /// Stream of its standard output; 0: /dev/null.
    pub stdout: u32,
    /// Stream of its standard error; 0: /dev/null (with TTY: the terminal).
    pub stderr: u32,
    /// Bits of [`exec_flags`].
    pub flags: u32,
    /// Height of the terminal.
    pub rows: u16,
    /// Width of the terminal.
    pub cols: u16,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File creation mask.
    pub umask: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Most processes of the job; 0: no limit.
    pub pids_max: u32,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// Arguments, the program first.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// A file that is tried before `argv[0]` is searched for; empty: none.
    pub program: Vec<u8>,
    /// With TTY: stream of what is typed, and the standard input is none of the terminal's; 0: they are the same.
    pub keys: u32,
    /// Signals the program ignores from its start: bit N - 1 for signal N.
    pub ignored: u64,
    /// Niceness, 0 to [`MAX_NICE`].
    pub nice: u8,
}

/// A message to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    /// Prepare the guest.
    Setup {
        /// Number for the answer.
        seq: u32,
        /// Done in order; the first failure ends it.
        steps: Vec<Step>,
    },
    /// Start a program.
    Exec(Box<Exec>),
    /// Send a signal to a job's process group.
    Signal {
        /// The job.
        job: u32,
        /// Signal number.
        signo: u32,
    },
    /// The terminal's size has changed.
    Resize {
        /// The job.
        job: u32,
        /// Height.
        rows: u16,
        /// Width.
        cols: u16,
    },
    /// Sync and power off.
    Poweroff,
    /// Sync.
    Sync {
        /// Number for the answer.
        seq: u32,
    },
}

/// A message to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The agent is there; sent once, at the first attach.
    Ready {
        /// Version of the agent.
        agent_version: Vec<u8>,
        /// Release of the kernel.
        kernel: Vec<u8>,
        /// Time since the kernel started.
        uptime_ns: u64,
    },
    /// A SETUP is done.
    SetupDone {
        /// Its number.
        seq: u32,
    },
    /// A SETUP ended at a step.
    SetupFailed {
        /// Its number.
        seq: u32,
        /// Index of the step, from 0.
        step: u32,
        /// The error number.
        errno: u32,
        /// What failed.
        what: Vec<u8>,
    },
    /// A program was started.
    Started {
        /// The job.
        job: u32,
        /// Its process id in the guest.
        pid: u32,
    },
    /// A program was not started.
    Failed {
        /// The job.
        job: u32,
        /// The error number.
        errno: u32,
        /// What failed.
        what: Vec<u8>,
    },
    /// A program ended.
    Exited {
        /// The job.
        job: u32,
        /// 0: exit status, 1: signal.
        kind: u8,
        /// Status or signal number.
        value: u32,
        /// The guest's kernel ran out of memory and killed.
        oom: bool,
        /// Processor time in user mode.
        user_ns: u64,
        /// Processor time in the kernel.
        sys_ns: u64,
        /// Largest resident set.
        maxrss_bytes: u64,
    },
    /// A job was stopped.
    Stopped {
        /// The job.
        job: u32,
        /// By this signal.
        signo: u32,
    },
    /// A stopped job goes on.
    Continued {
        /// The job.
        job: u32,
    },
    /// Something to note.
    Log {
        /// 0 debug, 1 info, 2 warning, 3 error.
        level: u8,
        /// The note.
        text: Vec<u8>,
    },
    /// A SYNC is done.
    Synced {
        /// Its number.
        seq: u32,
    },
}

impl Exec {
    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let exec = Self {
            job: r.u32()?,
            stdin: r.u32()?,
            stdout: r.u32()?,
            stderr: r.u32()?,
            flags: r.u32()?,
            rows: r.u16()?,
            cols: r.u16()?,
            uid: r.u32()?,
            gid: r.u32()?,
            umask: r.u32()?,
            groups: r.list(4, Reader::u32)?,
            pids_max: r.u32()?,
            cwd: r.byte_vec()?,
            argv: r.list(4, Reader::byte_vec)?,
            env: r.list(4, Reader::byte_vec)?,
            program: r.byte_vec()?,
            keys: r.u32()?,
            ignored: r.u64()?,
            nice: r.u8()?,
        };
        exec.check()?;
        Ok(exec)
    }

    fn write(&self, w: &mut Writer) {
        w.u32(self.job).u32(self.stdin).u32(self.stdout);
        w.u32(self.stderr).u32(self.flags);
        w.u16(self.rows).u16(self.cols);
        w.u32(self.uid).u32(self.gid).u32(self.umask);
        w.list(&self.groups, |w, gid| {
            w.u32(*gid);
        });
        w.u32(self.pids_max).bytes(&self.cwd);
        w.list(&self.argv, |w, arg| {
            w.bytes(arg);
        });
        w.list(&self.env, |w, entry| {
            w.bytes(entry);
        });
        w.bytes(&self.program);
        w.u32(self.keys).u64(self.ignored).u8(self.nice);
    }

    fn check(&self) -> Result<()> {
        if self.flags & !exec_flags::ALL != 0 {
            return Err(CodecError::Unknown {
                what: "exec flags",
                value: u64::from(self.flags & !exec_flags::ALL),
            });
        }
        if self.argv.is_empty() {
            return Err(CodecError::Invalid("argv"));
        }
        let to_host = |id: u32| id == 0 || (id % 2 == 1 && id > 1);
        if self.stdin % 2 != 0
            || self.keys % 2 != 0
            || !to_host(self.stdout)
            || !to_host(self.stderr)
        {
            return Err(CodecError::Invalid("stream id"));
        }
        let has_terminal = self.flags & exec_flags::TTY != 0;
        let typed = if self.keys == 0 {
            self.stdin
        } else {
            self.keys
        };
        if has_terminal && (typed == 0 || self.stdout == 0 || self.stderr == self.stdout)
            || self.keys != 0 && (!has_terminal || self.keys == self.stdin)
        {
            return Err(CodecError::Invalid("streams of a terminal"));
        }
        if self.ignored & NEVER_IGNORED != 0 {
            return Err(CodecError::Invalid("ignored signals"));
        }
        if self.nice > MAX_NICE {
            return Err(CodecError::Invalid("niceness"));
        }
        Ok(())
    }
}

impl ToAgent {
    /// Decodes a message without its length: type and body.
    ///
    /// # Errors
    /// [`CodecError`] when it is not exactly one well-formed message.
    pub fn decode(message: &[u8]) -> Result<Self> {
        let mut r = bounded(message, MAX_TO_AGENT)?;
        let out = match r.u8()? {
            1 => Self::Setup {
                seq: r.u32()?,
                steps: r.list(5, Step::read)?,
            },
            2 => Self::Exec(Box::new(Exec::read(&mut r)?)),
            3 => Self::Signal {
                job: r.u32()?,
                signo: r.u32()?,
            },
            4 => Self::Resize {
                job: r.u32()?,
                rows: r.u16()?,
                cols: r.u16()?,
            },
            5 => Self::Poweroff,
            6 => Self::Sync { seq: r.u32()? },
            other => return Err(unknown("message type", other)),
        };
        r.finish()?;
        Ok(out)
    }

    /// Encodes the message with its length before it.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] past [`MAX_TO_AGENT`], and what a decoder would refuse in an EXEC.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new(MAX_TO_AGENT);
        match self {
            Self::Setup { seq, steps } => {
                w.u8(1).u32(*seq);
                w.list(steps, |w, step| step.write(w));
            }
            Self::Exec(exec) => {
                exec.check()?;
                w.u8(2);
                exec.write(&mut w);
            }
            Self::Signal { job, signo } => {
                w.u8(3).u32(*job).u32(*signo);
            }
            Self::Resize { job, rows, cols } => {
                w.u8(4).u32(*job).u16(*rows).u16(*cols);
            }
            Self::Poweroff => {
                w.u8(5);
            }
            Self::Sync { seq } => {
                w.u8(6).u32(*seq);
            }
        }
        Ok(with_length(&w.finish()?))
    }
}

impl ToHost {
    /// Decodes a message without its length: type and body.
    ///
    /// # Errors
    /// [`CodecError`] when it is not exactly one well-formed message.
    pub fn decode(message: &[u8]) -> Result<Self> {
        let mut r = bounded(message, MAX_TO_HOST)?;
        let out = match r.u8()? {
            65 => Self::Ready {
                agent_version: r.byte_vec()?,
                kernel: r.byte_vec()?,
                uptime_ns: r.u64()?,
            },
            66 => Self::SetupDone { seq: r.u32()? },
            67 => Self::SetupFailed {
                seq: r.u32()?,
                step: r.u32()?,
                errno: r.u32()?,
                what: r.byte_vec()?,
            },
            68 => Self::Started {
                job: r.u32()?,
                pid: r.u32()?,
            },
            69 => Self::Failed {
                job: r.u32()?,
                errno: r.u32()?,
                what: r.byte_vec()?,
            },
            70 => Self::Exited {
                job: r.u32()?,
                kind: at_most(&mut r, 1, "kind of end")?,
                value: r.u32()?,
                oom: at_most(&mut r, 1, "oom")? == 1,
                user_ns: r.u64()?,
                sys_ns: r.u64()?,
                maxrss_bytes: r.u64()?,
            },
            71 => Self::Stopped {
                job: r.u32()?,
                signo: r.u32()?,
            },
            72 => Self::Continued { job: r.u32()? },
            73 => Self::Log {
                level: at_most(&mut r, 3, "level")?,
                text: r.byte_vec()?,
            },
            74 => Self::Synced { seq: r.u32()? },
            other => return Err(unknown("message type", other)),
        };
        r.finish()?;
        Ok(out)
    }

    /// Encodes the message with its length before it.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] past [`MAX_TO_HOST`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new(MAX_TO_HOST);
        match self {
            Self::Ready {
                agent_version,
                kernel,
                uptime_ns,
            } => w.u8(65).bytes(agent_version).bytes(kernel).u64(*uptime_ns),
            Self::SetupDone { seq } => w.u8(66).u32(*seq),
            Self::SetupFailed {
                seq,
                step,
                errno,
                what,
            } => w.u8(67).u32(*seq).u32(*step).u32(*errno).bytes(what),
            Self::Started { job, pid } => w.u8(68).u32(*job).u32(*pid),
            Self::Failed { job, errno, what } => w.u8(69).u32(*job).u32(*errno).bytes(what),
            Self::Exited {
                job,
                kind,
                value,
                oom,
                user_ns,
                sys_ns,
                maxrss_bytes,
            } => {
                w.u8(70).u32(*job).u8(*kind).u32(*value);
                w.u8(u8::from(*oom)).u64(*user_ns).u64(*sys_ns);
                w.u64(*maxrss_bytes)
            }
            Self::Stopped { job, signo } => w.u8(71).u32(*job).u32(*signo),
            Self::Continued { job } => w.u8(72).u32(*job),
            Self::Log { level, text } => w.u8(73).u8(*level).bytes(text),
            Self::Synced { seq } => w.u8(74).u32(*seq),
        };
        Ok(with_length(&w.finish()?))
    }
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(message.len() + 4);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(message);
    out
}

fn bounded(message: &[u8], limit: usize) -> Result<Reader<'_>> {
    if message.len() > limit {
        return Err(CodecError::TooLong { limit });
    }
    Ok(Reader::new(message))
}

fn at_most(r: &mut Reader<'_>, max: u8, what: &'static str) -> Result<u8> {
    match r.u8()? {
        value if value <= max => Ok(value),
        other => Err(unknown(what, other)),
    }
}

fn unknown(what: &'static str, value: u8) -> CodecError {
    CodecError::Unknown {
        what,
        value: u64::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXEC with a stream id of the wrong direction, unknown flags, no argument, a terminal without its streams, keys
    /// without a terminal, signals that nobody can ignore, or a niceness that does not exist is refused.
    #[test]
    fn exec_is_checked() {
        let good = Exec {
            job: 1,
            stdin: 2,
            stdout: 3,
            stderr: 0,
            flags: exec_flags::TTY,
            rows: 24,
            cols: 80,
            uid: 0,
            gid: 0,
            umask: 0o22,
            groups: vec![],
            pids_max: 0,
            cwd: b"/".to_vec(),
            argv: vec![b"true".to_vec()],
            env: vec![],
            program: vec![],
            keys: 0,
            ignored: !NEVER_IGNORED,
            nice: MAX_NICE,
        };
        let typed = |exec: &Exec| Exec {
            stdin: 0,
            keys: 4,
            ..exec.clone()
        };
        for exec in [good.clone(), typed(&good)] {
            assert!(ToAgent::Exec(Box::new(exec)).encode().is_ok());
        }
        let broken: [fn(&mut Exec); 12] = [
            |e| e.stdin = 5,
            |e| e.stdout = 1,
            |e| e.stderr = 3,
            |e| e.flags = 8,
            |e| e.argv.clear(),
            |e| e.stdin = 0,
            |e| e.keys = 5,
            |e| e.keys = e.stdin,
            |e| (e.keys, e.flags) = (4, 0),
            |e| e.ignored |= 1 << 8,
            |e| e.ignored |= 1 << 18,
            |e| e.nice = 20,
        ];
        for change in broken {
            let mut exec = good.clone();
            change(&mut exec);
            assert!(ToAgent::Exec(Box::new(exec)).encode().is_err());
        }
    }
}
