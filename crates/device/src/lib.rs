//! What all device processes share.
//!
//! A device process is the backend of one virtual device, speaks vhost-user with one VMM at a time, and holds nothing but
//! what its device needs. [`run`] is the whole of its `main`: it reads the command line, takes over the descriptors named
//! there and closes every other one, forbids dumps, has the device opened, gives up what it can reach by name (Landlock), puts the
//! filter of system calls on, and serves. It has one thread, from the first to the last moment, so that no filter has to allow a
//! second one.
//!
//! A [`Device`] sees queues and memory, and no socket.

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
mod process;
mod serve;
mod vring;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use thiserror::Error;

pub use inflight::{create as create_inflight, Inflight, InflightError};
pub use inherited::Inherited;
pub use lent::{Fault, Lent, Slice, MAX_BYTES, MAX_SLICES};
pub use memory::{Chain, Memory};
pub use options::{Options, OptionsError, Syntax};
pub use vring::{Broken, Progress, Request, Vring, Written};
pub use watch::Watch;

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

    /// What it waits for beside its queues; asked again whenever it has looked at them. Only queues that run are looked at.
    fn watch(&self) -> Option<Watch> {
        None
    }

    /// Why it cannot go on, once it cannot: the process ends then, with a sentence.
    fn over(&mut self) -> Option<Over> {
        None
    }

    /// The guest has reset the device, or the frontend is gone.
    fn reset(&mut self) {}

    /// A descriptor of its own, beside the frontend's, on which it waits for whoever has started it.
    fn side(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// There is something to read at [`Device::side`]. Returns whether more may come.
    fn side_is_ready(&mut self) -> bool {
        false
    }

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

/// A device program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name, in front of every line it logs.
    pub name: &'static str,
    /// Its options.
    pub syntax: Syntax,
    /// The filter it puts on itself once it is ready: a classic BPF program.
    pub filter: &'static [u8],
    /// What it does when the frontend is gone.
    pub reconnect: Reconnect,
}

impl Program {
    /// The whole of `main`. `parse` reads the program's own options and opens nothing; `open` makes the device.
    pub fn run<A>(
        &self,
        parse: impl FnOnce(&Options) -> Result<A, OptionsError>,
        open: impl FnOnce(A, &mut Inherited) -> io::Result<Box<dyn Device>>,
    ) -> ExitCode {
        logger::set_program(self.name);
        let words = std::env::args_os().skip(1);
        let parsed = Options::parse(self.syntax, words).and_then(|options| {
            let level = options.optional(options::LOG_LEVEL, |text| text.parse().ok())?;
            options.fds()?;
            let arguments = parse(&options)?;
            Ok((options, level, arguments))
        });
        let (options, level, arguments) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                eprintln!("{}: {error}", self.name);
                return ExitCode::from(BAD_USAGE);
            }
        };
        logger::start(level.unwrap_or(log::LevelFilter::Warn));
        match self.serve(&options, arguments, open) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", self.name);
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

    fn serve<A>(
        &self,
        options: &Options,
        arguments: A,
        open: impl FnOnce(A, &mut Inherited) -> io::Result<Box<dyn Device>>,
    ) -> io::Result<()> {
        process::harden()?;
        #[cfg(feature = "hostile")]
        hostile::give_up(options)?;
        let mut inherited = Inherited::adopt(options)?;
        // Whatever the process was started in may not be its to come back to.
        std::env::set_current_dir("/")?;
        let signals = process::end_signals()?;
        let socket = inherited.take_socket()?;
        let device =
            open(arguments, &mut inherited).map_err(|error| io::Error::other(Unusable(error)))?;
        let reach = inherited.take_reach();
        // A descriptor that the program did not take is not kept.
        drop(inherited);
        let server = serve::Server::new(device, signals)?;
        #[cfg(feature = "hostile")]
        let is_filtered = !hostile::is_bare(options);
        #[cfg(not(feature = "hostile"))]
        let is_filtered = true;
        #[cfg(feature = "hostile")]
        let is_limited = !hostile::is_unlimited(options);
        #[cfg(not(feature = "hostile"))]
        let is_limited = true;
        if is_limited {
            landlock::limit(&reach).map_err(|error| {
                io::Error::other(format!("cannot limit what it can reach: {error}"))
            })?;
        }
        if is_filtered {
            process::install_filter(self.filter).map_err(|error| {
                io::Error::other(format!("cannot limit its own system calls: {error}"))
            })?;
        }
        #[cfg(feature = "hostile")]
        hostile::run(options).map_err(io::Error::other)?;
        server.run(socket, self.reconnect)
    }
}
