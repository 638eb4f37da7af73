//! One virtqueue: takes requests out, gives them back, tells the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use crate::memory::{Chain, DirtyLog, Memory};

/// What a guest that breaks its own queue is answered with: the queue is left alone until it kicks again.
#[derive(Debug, Error)]
pub enum Broken {
    /// The rings make no sense.
    #[error("the guest broke its queue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// It promises requests and holds none.
    #[error("the guest broke its queue: nothing is in it")]
    Empty,
}

/// Whether a queue has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is empty; the guest kicks when it is not.
    Idle,
    /// There may be more in it.
    More,
}

/// One virtqueue of the device, with its event descriptors.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    memory: Arc<Memory>,
    log: Option<Arc<DirtyLog>>,
    kick: Option<File>,
    call: Option<File>,
    is_enabled: bool,
}

impl Vring {
    /// Makes a queue of at most `most` entries (a power of two) that is not started.
    ///
    /// # Errors
    /// When `most` is no size of a queue.
    pub(crate) fn new(most: u16) -> io::Result<Self> {
        Ok(Vring {
            queue: Queue::new(most).map_err(io::Error::other)?,
            memory: Arc::default(),
            log: None,
            kick: None,
            call: None,
            is_enabled: false,
        })
    }

    /// Has everything that is in the queue answered, once: `answer` gets each request and returns how many bytes it wrote.
    ///
    /// The guest is told once, at the end. A guest that fills the queue meanwhile gets its turn after the others
    /// ([`Progress::More`]).
    ///
    /// # Errors
    /// [`Broken`] when the guest's rings make no sense; what was answered until then has been given back.
    pub fn serve(
        &mut self,
        mut answer: impl FnMut(&Arc<Memory>, Chain) -> u32,
    ) -> Result<Progress, Broken> {
        let memory = self.memory.clone();
        self.queue.disable_notification(&*memory)?;
        let chains: Vec<Chain> = self.queue.iter(memory.clone())?.collect();
        let is_empty = chains.is_empty();
        for chain in chains {
            let written = answer(&memory, chain.clone());
            self.give_back(chain, written)?;
        }
        if !is_empty {
            self.tell()?;
        }
        match (self.queue.enable_notification(&*memory)?, is_empty) {
            (false, _) => Ok(Progress::Idle),
            (true, false) => Ok(Progress::More),
            // A working guest never promises a request that is not there.
            (true, true) => Err(Broken::Empty),
        }
    }

    fn give_back(&mut self, chain: Chain, written: u32) -> Result<(), Broken> {
        let head = chain.head_index();
        if let Some(log) = &self.log {
            // After it was written and before the guest learns of it.
            log.mark_chain(chain, written);
            let length = 4 + 8 * u64::from(self.queue.size()) + 2;
            log.mark(self.queue.used_ring(), length);
        }
        Ok(self.queue.add_used(&*self.memory, head, written)?)
    }

    fn tell(&mut self) -> Result<(), Broken> {
        if !self.queue.needs_notification(&*self.memory)? {
            return Ok(());
        }
        if let Some(call) = &mut self.call {
            // It blocks for a frontend that has written the counter full; that one has enough to wake up for.
            if let Err(error) = call.write_all(&1u64.to_ne_bytes()) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("the guest cannot be told: {error}");
                }
            }
        }
        Ok(())
    }

    // What the frontend says.

    pub(crate) fn set_memory(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    pub(crate) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
    }

    pub(crate) fn set_size(&mut self, size: u32) -> io::Result<()> {
        let size = u16::try_from(size).unwrap_or(0);
        if !size.is_power_of_two() || size > self.queue.max_size() {
            return Err(io::Error::other("no size of a queue"));
        }
        self.queue.set_size(size);
        Ok(())
    }

    /// Sets where the rings are, and goes on with the used ring where it was left.
    pub(crate) fn set_places(&mut self, table: u64, available: u64, used: u64) -> io::Result<()> {
        let queue = &mut self.queue;
        queue
            .try_set_desc_table_address(GuestAddress(table))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(available)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(used)))
            .map_err(io::Error::other)?;
        let next = queue
            .used_idx(&*self.memory, Ordering::Relaxed)
            .map_err(io::Error::other)?;
        queue.set_next_used(next.0);
        Ok(())
    }

    pub(crate) fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    pub(crate) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    pub(crate) fn set_event_idx(&mut self, is_on: bool) {
        self.queue.set_event_idx(is_on);
    }

    pub(crate) fn set_enabled(&mut self, is_enabled: bool) {
        self.is_enabled = is_enabled;
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call;
    }

    /// Starts the queue.
    pub(crate) fn start(&mut self, kick: File) {
        self.kick = Some(kick);
        self.queue.set_ready(true);
    }

    /// Stops the queue; what has been taken from it is answered by then.
    pub(crate) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
    }

    /// The descriptor to wait for, if the queue runs.
    pub(crate) fn awaited(&self) -> Option<RawFd> {
        let is_running = self.is_enabled && self.queue.ready();
        self.kick
            .as_ref()
            .filter(|_| is_running)
            .map(AsRawFd::as_raw_fd)
    }

    /// Takes the kick in. An error means that the descriptor is not what it should be.
    pub(crate) fn take_kick(&mut self) -> io::Result<()> {
        let Some(kick) = &mut self.kick else {
            return Ok(());
        };
        match kick.read(&mut [0; 8]) {
            Ok(8) => Ok(()),
            Ok(_) => Err(io::Error::other("its kick is no event")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
