//! What the one loop waits for on the device's account: the kicks of its queues, and a descriptor of its own.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Whose turn it is when something has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A queue is looked at ([`crate::Device::process`]). While it does not run nothing is waited for.
    Queue(usize),
    /// The device itself ([`crate::Device::woken`]), whatever its queues do.
    Device,
}

/// What a device waits for beside its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// A descriptor that stays the same, and open.
    pub fd: RawFd,
    /// Whose turn it is when something can be read; `None` when the device does not want to read now.
    pub read: Option<Turn>,
    /// Whose turn it is when something can be written; `None` when it does not want to write now.
    pub write: Option<Turn>,
}

impl Watch {
    fn pairs(self) -> [(Option<Turn>, EventSet); 2] {
        [(self.read, EventSet::IN), (self.write, EventSet::OUT)]
    }

    /// Whose turn it is when this has come.
    pub(crate) fn turns(self, events: EventSet) -> impl Iterator<Item = Turn> {
        // A descriptor that is at its end, or broken, can be read and written: that is where it shows.
        let is_over = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let is_for = move |event| is_over || events.contains(event);
        self.pairs()
            .into_iter()
            .filter_map(move |(turn, event)| turn.filter(|_| is_for(event)))
    }

    /// What is waited for while these queues run. Not for nothing either: that it is at its end would be reported again and
    /// again.
    pub(crate) fn events(self, runs: impl Fn(usize) -> bool) -> Option<(RawFd, EventSet)> {
        let mut events = EventSet::empty();
        for (turn, event) in self.pairs() {
            let is_awaited = turn.is_some_and(|turn| match turn {
                Turn::Queue(queue) => runs(queue),
                Turn::Device => true,
            });
            events.set(event, is_awaited);
        }
        (!events.is_empty()).then_some((self.fd, events))
    }
}

/// What the device's own descriptor is known by in the loop; queues are known by their numbers.
pub(crate) const DEVICE: u64 = u64::MAX - 2;

/// What is waited for on the device's own account.
#[derive(Debug, Default)]
pub(crate) struct Watched(Option<(RawFd, EventSet)>);

impl Watched {
    /// Waits for something else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change(&mut self, epoll: &Epoll, wanted: Option<(RawFd, EventSet)>) -> io::Result<()> {
        let (operation, fd, events) = match (self.0, wanted) {
            (before, now) if before == now => return Ok(()),
            (None, Some((fd, events))) => (ControlOperation::Add, fd, events),
            (Some(_), Some((fd, events))) => (ControlOperation::Modify, fd, events),
            (Some((fd, _)), None) => (ControlOperation::Delete, fd, EventSet::empty()),
            (None, None) => return Ok(()),
        };
        epoll.ctl(operation, fd, EpollEvent::new(events, DEVICE))?;
        self.0 = wanted;
        Ok(())
    }
}

/// Waits for the kicks of one queue, or for none.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn await_kick(
    epoll: &Epoll,
    awaited: &mut [Option<i32>],
    index: usize,
    wanted: Option<i32>,
) -> io::Result<()> {
    // Always anew: the number may be the same and the descriptor another.
    if let Some(fd) = awaited[index].take() {
        // It may have been closed with its queue; then it is not awaited any more.
        let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
    if let Some(fd) = wanted {
        let event = EpollEvent::new(EventSet::IN, index as u64);
        epoll.ctl(ControlOperation::Add, fd, event)?;
        awaited[index] = Some(fd);
    }
    Ok(())
}
