//! One virtqueue: takes requests out, gives them back, tells the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::inflight::{Inflight, InflightError};
use crate::lent::Lent;
use crate::memory::{Chain, DirtyLog, Memory};

/// What a guest that breaks its own queue is answered with: the queue is left alone until the guest puts something in again, and
/// kicks ([`Vring::want_another`]).
#[derive(Debug, Error)]
pub enum Broken {
    /// The rings make no sense.
    #[error("the guest broke its queue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// It promises requests and holds none.
    #[error("the guest broke its queue: nothing is in it")]
    Empty,
    /// It names a descriptor that is not there.
    #[error("the guest broke its queue: there is no descriptor {0}")]
    Head(u16),
    /// The frontend's notes on requests in flight have no room for a request.
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// Whether a queue has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is empty; the guest kicks when it is not.
    Idle,
    /// There may be more in it.
    More,
}

/// A request that was taken out of a queue, to be looked at in one of two ways.
#[derive(Debug)]
pub struct Request<'m> {
    memory: &'m Memory,
    table: GuestAddress,
    size: u16,
    head: u16,
    chain: Option<Chain>,
}

impl<'m> Request<'m> {
    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &'m Memory {
        self.memory
    }

    /// What the guest has lent for it.
    #[must_use]
    pub fn lent(&self) -> Lent<'m> {
        Lent::walk(self.memory, self.table, self.size, self.head)
    }

    /// The library's view of it. There is none of a request that is done again, so devices whose requests may be
    /// ([`crate::Device::has_inflight`]) use [`Request::lent`].
    #[must_use]
    pub fn into_chain(self) -> Option<Chain> {
        self.chain
    }
}

/// What was written for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// So many bytes, the first of those that may be written.
    Front(u32),
    /// So many as far as the guest is told, and maybe others: a request that failed halfway does not say where.
    Anywhere(u32),
}

impl Written {
    fn count(self) -> u32 {
        match self {
            Written::Front(count) | Written::Anywhere(count) => count,
        }
    }
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
    inflight: Option<Inflight>,
    /// Requests that the process before this one took and did not give back; the oldest is the last.
    again: Vec<u16>,
}

impl Vring {
    /// Makes a queue of at most `most` entries (a power of two) that is not started.
    ///
    /// # Errors
    /// When `most` is no size of a queue.
    pub fn new(most: u16) -> io::Result<Self> {
        Ok(Vring {
            queue: Queue::new(most).map_err(io::Error::other)?,
            memory: Arc::default(),
            log: None,
            kick: None,
            call: None,
            is_enabled: false,
            inflight: None,
            again: Vec::new(),
        })
    }

    /// Has up to a queue full of requests answered, those first that a process before this one has left undone.
    ///
    /// `answer` returns what it wrote for the guest. The guest is told of each request when it wants to be: the
    /// next one may take long. A guest that fills the queue meanwhile gets its turn after the others ([`Progress::More`]).
    ///
    /// # Errors
    /// [`Broken`] when the guest's rings make no sense; what was answered until then has been given back.
    pub fn serve(
        &mut self,
        mut answer: impl FnMut(Request<'_>) -> Written,
    ) -> Result<Progress, Broken> {
        let mut looked_again = false;
        loop {
            self.want_no_kicks()?;
            let mut answered = 0;
            while answered < self.queue.size() && self.serve_one(&mut answer)? {
                answered += 1;
            }
            match (self.want_kicks()?, answered) {
                (false, _) => return Ok(Progress::Idle),
                (true, 1..) => return Ok(Progress::More),
                // It came after the look at the empty queue: there is a kick for it only if the guest was told to in time.
                (true, 0) if !looked_again => looked_again = true,
                // A working guest never promises a request that is not there.
                (true, 0) => return Err(Broken::Empty),
            }
        }
    }

    /// Has one request answered, if there is one; returns whether there was. For devices that cannot always take the next
    /// one, and tell the guest themselves when it need not kick.
    ///
    /// # Errors
    /// As for [`Vring::serve`].
    pub fn serve_one(
        &mut self,
        answer: impl FnOnce(Request<'_>) -> Written,
    ) -> Result<bool, Broken> {
        let Some((head, chain)) = self.take()? else {
            return Ok(false);
        };
        let memory = self.memory.clone();
        let request = Request {
            memory: &memory,
            table: GuestAddress(self.queue.desc_table()),
            size: self.queue.size(),
            head,
            chain,
        };
        // A guest that changes the descriptors meanwhile deceives only its own copy.
        let places = self.log.is_some().then(|| request.lent().into_places());
        let written = answer(request);
        self.log_places(&places.unwrap_or_default(), written);
        self.give_back(head, written.count())?;
        self.log_used();
        self.tell()?;
        Ok(true)
    }

    /// Tells the guest that it need not kick: the device comes back by itself.
    ///
    /// # Errors
    /// As for [`Vring::serve`].
    pub fn want_no_kicks(&mut self) -> Result<(), Broken> {
        let memory = self.memory.clone();
        let told = self.queue.disable_notification(&*memory);
        self.log_used();
        Ok(told?)
    }

    /// Tells the guest to kick when it has put something in; returns whether something is in it already, for which it
    /// may not have kicked.
    ///
    /// # Errors
    /// As for [`Vring::serve`].
    pub fn want_kicks(&mut self) -> Result<bool, Broken> {
        let memory = self.memory.clone();
        let told = self.queue.enable_notification(&*memory);
        self.log_used();
        Ok(told?)
    }

    /// Tells the guest to kick for the next thing it puts in, whatever is in it: what it broke its queue with is not looked at again
    /// before. Returns whether something was put in meanwhile, for which it may not have kicked.
    ///
    /// # Errors
    /// As for [`Vring::serve`].
    pub(crate) fn want_another(&mut self) -> Result<bool, Broken> {
        let memory = self.memory.clone();
        let before = self.queue.avail_idx(&*memory, Ordering::Acquire)?;
        if self.queue.event_idx_enabled() {
            // The library would write the index of the next request to be taken, which a guest that is ahead of it has passed.
            let offset = 4 + 8 * u64::from(self.queue.size());
            let place = GuestAddress(self.queue.used_ring().wrapping_add(offset));
            memory
                .store(before.0.to_le(), place, Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            self.log_used();
            fence(Ordering::SeqCst);
        } else {
            self.want_kicks()?;
        }
        Ok(self.queue.avail_idx(&*memory, Ordering::Relaxed)? != before)
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next request, and notes that it was taken; one that is done again is only known by its head.
    fn take(&mut self) -> Result<Option<(u16, Option<Chain>)>, Broken> {
        if let Some(head) = self.again.pop() {
            return Ok(Some((head, None)));
        }
        let Some(chain) = self.queue.iter(self.memory.clone())?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(Broken::Head(head));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.taken(head)?;
        }
        Ok(Some((head, Some(chain))))
    }

    fn give_back(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        if let Some(inflight) = &mut self.inflight {
            inflight.returning(head)?;
        }
        self.queue.add_used(&*self.memory, head, written)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.returned(head, self.queue.next_used())?;
        }
        Ok(())
    }

    fn log(&self, address: u64, length: u64) {
        if let Some(log) = &self.log {
            log.mark(address, length);
        }
    }

    /// Logs what was written, after it was: what the frontend collects before that is collected for nothing.
    fn log_places(&self, places: &[(u64, u64)], written: Written) {
        if cfg!(feature = "mutant-no-log") {
            return;
        }
        let mut left = match written {
            Written::Front(count) => u64::from(count),
            Written::Anywhere(_) => u64::MAX,
        };
        for (address, length) in places {
            let length = left.min(*length);
            self.log(*address, length);
            left -= length;
        }
    }

    fn log_used(&self) {
        self.log(
            self.queue.used_ring(),
            4 + 8 * u64::from(self.queue.size()) + 2,
        );
    }

    fn tell(&mut self) -> Result<(), Broken> {
        if !self.queue.needs_notification(&*self.memory)? {
            return Ok(());
        }
        self.ring_call();
        Ok(())
    }

    fn ring_call(&mut self) {
        if let Some(call) = &mut self.call {
            // It blocks for a frontend that has written the counter full; that one has enough to wake up for.
            if let Err(error) = call.write_all(&1u64.to_ne_bytes()) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("the guest cannot be told: {error}");
                }
            }
        }
    }

    // What the frontend says.

    /// Sets the memory that it is in.
    pub fn set_memory(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    pub(crate) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
    }

    /// Sets how many entries it has.
    ///
    /// # Errors
    /// When that is no power of two or too many.
    pub fn set_size(&mut self, size: u32) -> io::Result<()> {
        let size = u16::try_from(size).unwrap_or(0);
        if !size.is_power_of_two() || size > self.queue.max_size() {
            return Err(io::Error::other("no size of a queue"));
        }
        self.queue.set_size(size);
        Ok(())
    }

    /// Sets where the rings are, and goes on with the used ring where it was left.
    ///
    /// # Errors
    /// When one is misaligned or outside of memory.
    pub fn set_places(&mut self, table: u64, available: u64, used: u64) -> io::Result<()> {
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

    /// Sets which entry is the next to be taken.
    pub fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    pub(crate) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Sets whether each side says from which request on it wants to be told.
    pub fn set_event_idx(&mut self, is_on: bool) {
        self.queue.set_event_idx(is_on);
    }

    pub(crate) fn set_enabled(&mut self, is_enabled: bool) {
        self.is_enabled = is_enabled;
    }

    /// Sets where notes on requests in flight are kept, from the next start on.
    pub fn set_inflight(&mut self, inflight: Option<Inflight>) {
        self.inflight = inflight;
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        self.tell_for_another();
    }

    /// Tells the guest of what a process before this one may have given back without saying so: it died in between. Which
    /// of the call, the rings and the start comes last is the frontend's choice.
    fn tell_for_another(&mut self) {
        let is_used = self.inflight.is_some() || self.queue.next_used() != 0;
        if self.queue.ready() && is_used {
            self.ring_call();
        }
    }

    /// Starts the queue.
    ///
    /// # Errors
    /// When the notes of the process before this one cannot be read.
    pub fn start(&mut self, kick: File) -> Result<(), Broken> {
        if let Some(inflight) = &mut self.inflight {
            let used = self.queue.used_idx(&*self.memory, Ordering::Acquire)?.0;
            self.again = inflight.recover(used)?;
            if let Ok(count @ 1..) = u16::try_from(self.again.len()) {
                log::info!("{count} requests of the process before this one are done again");
                // The frontend knows only what was given back.
                self.queue.set_next_avail(used.wrapping_add(count));
                self.again.reverse();
            }
        }
        self.kick = Some(kick);
        self.queue.set_ready(true);
        self.tell_for_another();
        Ok(())
    }

    /// Stops the queue; what has been taken from it is answered by then.
    pub(crate) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        // They are noted still, for the next start.
        self.again.clear();
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

#[cfg(test)]
#[path = "vring_tests.rs"]
mod tests;
