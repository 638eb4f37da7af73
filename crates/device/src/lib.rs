//! What all device processes share.
//!
//! A device process is the backend of one virtual device, speaks vhost-user with one VMM at a time, and holds nothing but
//! what its device needs. [`Program::run`] is the whole of its `main`: it reads the command line, takes over the descriptors named
//! there and closes every other one, forbids dumps, has the device opened, gives up what it can reach by name (Landlock), puts the
//! filter of system calls on, and serves. It has one thread, from the first to the last moment, so that no filter has to allow a
//! second one. Only a [`Bundle`] of several devices has more: one for each, made before the filter is on.
//!
//! A [`Device`] sees queues and memory, and no socket.

mod bundle;
mod channel;
mod early;
mod frontend;
#[cfg(feature = "hostile")]
mod hostile;
mod inflight;
mod inherited;
mod landlock;
mod lent;
mod logger;
mod memory;
mod options;
mod parts;
mod patience;
mod process;
mod serve;
mod vring;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use thiserror::Error;

use landlock::Reach;

pub use bundle::Bundle;
pub use inflight::{create as create_inflight, Inflight, InflightError};
pub use inherited::Inherited;
pub use lent::{Fault, Lent, Slice, MAX_BYTES, MAX_SLICES};
pub use memory::{Chain, Memory};
pub use options::{Options, OptionsError, Syntax};
pub use vring::{Broken, Progress, Request, Vring, Written};
pub use watch::{Turn, Watch};

/// Exit status for a wrong command line.
const BAD_USAGE: u8 = 2;
/// Exit status when what the device was given (an image) cannot be used: another start would not help.
const UNUSABLE: u8 = 4;

/// Why what a device was given cannot be used.
#[derive(Debug)]
struct Unusable(io::Error);

impl std::fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Unusable {}

/// Exit status when whoever the device was connected with has gone: another start with another connection would help.
const PEER_GONE: u8 = 5;

/// Why a device cannot go on.
#[derive(Debug, Error)]
pub enum Over {
    /// Whoever it was connected with, beside the frontend, has gone.
    #[error("whoever it was connected with has gone")]
    PeerGone,
    /// They said what makes no sense.
    #[error("{0}")]
    PeerWrong(String),
}

/// What is done when the frontend is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// The process ends, with status 0.
    Exit,
    /// The next one is waited for, on the same listening socket.
    AcceptAgain,
}

/// Which way a device's state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateTransfer {
    /// Out of the device.
    Save,
    /// Into the device.
    Load,
}

/// One virtual device.
///
/// Everything the guest says may be a lie: no method panics for what is in its queues.
pub trait Device: Send {
    /// How many queues it has.
    fn queues(&self) -> usize;

    /// How many entries a queue may have, a power of two.
    fn queue_size(&self) -> u16;

    /// The features of its own kind of device; those of every device (version 1, indirect descriptors, event indexes,
    /// the log) are added.
    fn features(&self) -> u64 {
        0
    }

    /// What the guest and the device have agreed on: some of the features offered.
    fn accept(&mut self, _features: u64) {}

    /// The fields of its configuration space; `None` leaves them to the VMM.
    fn config(&self) -> Option<Vec<u8>> {
        None
    }

    /// Whether the configuration space may be another when its process was started anew; the frontend is told then.
    fn is_growing(&self) -> bool {
        false
    }

    /// The guest writes into the configuration space.
    ///
    /// # Errors
    /// When that field cannot be written; this ends the connection.
    fn set_config(&mut self, _offset: u32, _data: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the configuration cannot be written"))
    }

    /// Looks at one queue (see [`Vring::serve`]): the guest has kicked, or the queue has just been started.
    ///
    /// # Errors
    /// [`Broken`] when the guest broke the queue. It is logged, and the device goes on.
    fn process(&mut self, queue: usize, vring: &mut Vring) -> Result<Progress, Broken>;

    /// Whether a queue has to be looked at although the guest has not kicked: the work for another one has made work for it.
    fn is_due(&self, _queue: usize) -> bool {
        false
    }

    /// How often the loop looks whether there is a next request, once it has answered one, before it sleeps. Worth it where
    /// a guest asks anew as soon as it has its answer: waking up takes longer than the work. Each look is one system call.
    fn looks(&self) -> u32 {
        0
    }

    /// What it waits for beside its queues; asked again whenever it has looked at them or was woken.
    fn watch(&self) -> Option<Watch> {
        None
    }

    /// What it watches for itself ([`Turn::Device`]) has come.
    fn woken(&mut self) {}

    /// Why it cannot go on, once it cannot: the process ends then, with a sentence.
    fn over(&mut self) -> Option<Over> {
        None
    }

    /// The guest has reset the device, or the frontend is gone.
    fn reset(&mut self) {}

    /// Whether its requests may be done twice, and are noted while they are in flight, so that after a sudden death the next
    /// process does those again that were not given back. Such a device uses [`Request::lent`].
    fn has_inflight(&self) -> bool {
        false
    }

    /// Whether it has a state beside that of its queues, to be moved by [`Device::transfer`].
    fn has_state(&self) -> bool {
        false
    }

    /// Writes its state to `file`, or reads it from there, to the end. The queues are stopped.
    ///
    /// # Errors
    /// When that fails; the frontend is told.
    fn transfer(&mut self, _direction: StateTransfer, _file: File) -> io::Result<()> {
        Err(io::Error::other("the device has no state"))
    }
}

/// Makes a device of what its process was given.
pub type Open = Box<dyn FnOnce(&mut Inherited) -> io::Result<Box<dyn Device>> + Send>;

/// One kind of device: what its process is told, and what becomes of that.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// A word for it, where there are several kinds.
    pub name: &'static str,
    /// Its options.
    pub syntax: Syntax,
    /// What it does when the frontend is gone.
    pub reconnect: Reconnect,
    /// Reads its own options and opens nothing; what this gives back makes the device.
    pub read: fn(&Options) -> Result<Open, OptionsError>,
}

/// Serves one frontend until it is gone, in this process and without anything that confines it: for tests.
///
/// # Errors
/// What the frontend did wrong.
pub fn converse(device: Box<dyn Device>, frontend: UnixStream) -> io::Result<()> {
    let server = serve::Server::new(device, process::no_signals()?)?;
    server.run(inherited::Socket::Connected(frontend), Reconnect::Exit)
}

/// A device program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name, in front of every line it logs.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The filter it puts on itself once it is ready: a classic BPF program.
    pub filter: &'static [u8],
}

impl Program {
    /// The whole of `main`.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let words = std::env::args_os().skip(1);
        run(
            self.name,
            || Ok(vec![read(self.kind, words)?]),
            |told| self.serve(told),
        )
    }

    fn serve(&self, mut told: Vec<Told>) -> io::Result<()> {
        process::harden()?;
        #[cfg(feature = "hostile")]
        for told in &told {
            hostile::give_up(&told.options)?;
        }
        let mut inherited = Inherited::adopt(told.iter().map(|told| &told.options))?;
        // Whatever the process was started in may not be its to come back to.
        std::env::set_current_dir("/")?;
        process::block_end_signals()?;
        let (Some(told), Some(inherited)) = (told.pop(), inherited.pop()) else {
            return Err(io::Error::other("there is no device"));
        };
        let options = told.options.clone();
        let prepared = prepare(told, inherited)?;
        limit(&prepared.reach, &options)?;
        confine(self.filter, &options)?;
        prepared.serve()
    }
}

/// A device as the command line describes it.
struct Told {
    kind: Kind,
    options: Options,
    level: Option<log::LevelFilter>,
    open: Open,
}

fn read(kind: Kind, words: impl Iterator<Item = OsString>) -> Result<Told, OptionsError> {
    let options = Options::parse(kind.syntax, words)?;
    let level = options.optional(options::LOG_LEVEL, |text| text.parse().ok())?;
    options.fds()?;
    let open = (kind.read)(&options)?;
    Ok(Told {
        kind,
        options,
        level,
        open,
    })
}

/// A device that only has to be let loose.
struct Prepared {
    server: serve::Server,
    reach: Vec<Reach>,
    socket: inherited::Socket,
    reconnect: Reconnect,
}

impl Prepared {
    fn serve(self) -> io::Result<()> {
        self.server.run(self.socket, self.reconnect)
    }
}

fn prepare(told: Told, mut inherited: Inherited) -> io::Result<Prepared> {
    let socket = inherited.take_socket()?;
    let device = (told.open)(&mut inherited).map_err(|error| io::Error::other(Unusable(error)))?;
    Ok(Prepared {
        reach: inherited.take_reach(),
        server: serve::Server::new(device, process::end_signals()?)?,
        socket,
        reconnect: told.kind.reconnect,
    })
}

/// Takes from the calling thread what it could reach by name, but for what the device has kept.
fn limit(reach: &[Reach], options: &Options) -> io::Result<()> {
    #[cfg(feature = "hostile")]
    let is_limited = !hostile::is_unlimited(options);
    #[cfg(not(feature = "hostile"))]
    let (is_limited, _) = (true, options);
    if is_limited {
        landlock::limit(reach).map_err(|error| {
            io::Error::other(format!("cannot limit what it can reach: {error}"))
        })?;
    }
    Ok(())
}

/// Puts the filter from inside on the whole process.
fn confine(filter: &[u8], options: &Options) -> io::Result<()> {
    #[cfg(feature = "hostile")]
    let is_filtered = !hostile::is_bare(options);
    #[cfg(not(feature = "hostile"))]
    let (is_filtered, _) = (true, options);
    if is_filtered {
        process::install_filter(filter).map_err(|error| {
            io::Error::other(format!("cannot limit its own system calls: {error}"))
        })?;
    }
    #[cfg(feature = "hostile")]
    hostile::run(options).map_err(io::Error::other)?;
    Ok(())
}

/// What every device program does with what it was told, and how it ends.
fn run(
    name: &'static str,
    read: impl FnOnce() -> Result<Vec<Told>, OptionsError>,
    serve: impl FnOnce(Vec<Told>) -> io::Result<()>,
) -> ExitCode {
    logger::set_program(name);
    let told = match read() {
        Ok(told) => told,
        Err(error) => {
            logger::say(format_args!("{error}"));
            return ExitCode::from(BAD_USAGE);
        }
    };
    let level = told.iter().filter_map(|told| told.level).max();
    logger::start(level.unwrap_or(log::LevelFilter::Warn));
    match serve(told) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger::say(format_args!("{error}"));
            let cause = error.get_ref();
            if cause.is_some_and(|cause| cause.is::<Unusable>()) {
                ExitCode::from(UNUSABLE)
            } else if let Some(Over::PeerGone) = cause.and_then(|cause| cause.downcast_ref()) {
                ExitCode::from(PEER_GONE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
