//! The two ends of a one-directional stream: offsets, credit, and what is kept for a re-attach.

use crate::frame::{encode_data, Frame, TableEntry, MAX_DATA};
use crate::ring::{Ring, WINDOW};

/// A receiver reports what it consumed after this many bytes.
const WINDOW_STEP: u64 = 65536;

/// A frame that contradicts what is known of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contradiction;

type Checked = Result<(), Contradiction>;

fn require(condition: bool) -> Checked {
    if condition {
        Ok(())
    } else {
        Err(Contradiction)
    }
}

/// Whether a receiver may report these offsets: the limit is within one window of what it consumed.
fn limit_is_sane(consumed: u64, limit: u64) -> bool {
    limit <= consumed.saturating_add(WINDOW as u64)
}

/// The sending end. Its ring holds the bytes between `acked` and `next`.
#[derive(Debug)]
pub(crate) struct Sender {
    ring: Ring,
    acked: u64,
    next: u64,
    /// Offset of the next byte to put into a frame on this byte stream.
    sent: u64,
    limit: u64,
    ended: bool,
    aborted: bool,
    stopped: bool,
    /// The EOF went out on this byte stream.
    eof_sent: bool,
    /// The EOF went out on this byte stream or an earlier one.
    eof_ever: bool,
}

impl Sender {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            ring: Ring::default(),
            acked: 0,
            next: 0,
            sent: 0,
            limit,
            ended: false,
            aborted: false,
            stopped: false,
            eof_sent: false,
            eof_ever: false,
        }
    }

    /// How many new bytes may be handed in now.
    pub(crate) fn room(&self) -> usize {
        if self.ended {
            return 0;
        }
        usize::try_from(self.limit.saturating_sub(self.next))
            .unwrap_or(WINDOW)
            .min(WINDOW - self.ring.len())
    }

    pub(crate) fn spare(&mut self, want: usize) -> &mut [u8] {
        let want = want.min(self.room());
        if want == 0 {
            return &mut [];
        }
        self.ring.spare(want)
    }

    pub(crate) fn commit(&mut self, count: usize) {
        let count = count.min(self.room());
        self.ring.commit(count);
        self.next += count as u64;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.ring.push(&bytes[..count]);
        self.next += count as u64;
        count
    }

    pub(crate) fn finish(&mut self, aborted: bool) {
        if !self.ended {
            self.ended = true;
            self.aborted = aborted;
        }
    }

    /// The peer's reader is gone. Returns whether this is news.
    pub(crate) fn stop(&mut self) -> bool {
        if self.stopped {
            return false;
        }
        self.stopped = true;
        self.ended = true;
        // An EOF that is out already stays as it was; one that is sent again must not promise dropped bytes.
        self.aborted = true;
        self.drop_held();
        true
    }

    fn drop_held(&mut self) {
        self.ring.clear();
        self.acked = self.next;
        self.sent = self.next;
    }

    /// WINDOW. Returns whether the stream is finished.
    pub(crate) fn window(
        &mut self,
        consumed: u64,
        limit: u64,
        fin: bool,
    ) -> Result<bool, Contradiction> {
        // After a STOP everything counts as acknowledged here, while the peer still reports its way up to it.
        let lowest = if self.stopped { 0 } else { self.acked };
        require(consumed >= lowest && consumed <= self.next)?;
        require(limit >= self.limit && limit_is_sane(consumed, limit))?;
        if fin {
            require(self.ended && consumed == self.next)?;
        }
        self.acknowledge(consumed);
        self.limit = limit;
        Ok(fin)
    }

    fn acknowledge(&mut self, consumed: u64) {
        let count = consumed.saturating_sub(self.acked);
        self.ring.pop(usize::try_from(count).unwrap_or(WINDOW));
        self.acked = self.acked.max(consumed);
        self.sent = self.sent.max(self.acked);
    }

    pub(crate) fn check_entry(&self, entry: &TableEntry) -> Checked {
        let lowest = if self.stopped { 0 } else { self.acked };
        require(entry.consumed >= lowest && entry.consumed <= entry.received)?;
        require(entry.received <= self.next && limit_is_sane(entry.consumed, entry.limit))
    }

    /// The peer is attached again and told what it has.
    pub(crate) fn reattach(&mut self, entry: &TableEntry) {
        self.acknowledge(entry.consumed);
        self.limit = self.limit.max(entry.limit);
        self.eof_sent = false;
        self.sent = if self.stopped {
            self.next
        } else {
            entry.received.max(self.acked)
        };
    }

    /// The peer does not know the stream. Returns whether it has finished with it.
    pub(crate) const fn is_finished_if_unlisted(&self) -> bool {
        self.eof_ever
    }

    /// Appends at most one DATA frame with at most `most` bytes and, when nothing is left, the EOF. Returns whether
    /// there is more.
    pub(crate) fn fill(&mut self, stream: u32, out: &mut Vec<u8>, most: usize) -> bool {
        if self.sent < self.next {
            let skip = usize::try_from(self.sent - self.acked).unwrap_or(WINDOW);
            let (first, second) = self.ring.slices(skip, most.min(MAX_DATA));
            let count = first.len() + second.len();
            if count > 0 {
                encode_data(out, stream, self.sent, &[first, second]);
                self.sent += count as u64;
            }
        }
        if self.sent < self.next {
            return true;
        }
        if self.ended && !self.eof_sent {
            self.eof_sent = true;
            self.eof_ever = true;
            Frame::Eof {
                stream,
                offset: self.next,
                aborted: self.aborted,
            }
            .encode(out);
        }
        false
    }
}

/// The receiving end. Its ring holds the bytes between `consumed` and `received`.
#[derive(Debug)]
pub(crate) struct Receiver {
    ring: Ring,
    received: u64,
    consumed: u64,
    limit: u64,
    /// `consumed` of the last WINDOW.
    reported: u64,
    end: Option<u64>,
    stopped: bool,
    window_due: bool,
    stop_due: bool,
}

impl Receiver {
    /// A receiver whose first credit the peer already knows, or must be told.
    pub(crate) fn new(granted: bool) -> Self {
        Self {
            ring: Ring::default(),
            received: 0,
            consumed: 0,
            limit: if granted { WINDOW as u64 } else { 0 },
            reported: 0,
            end: None,
            stopped: false,
            window_due: !granted,
            stop_due: false,
        }
    }

    /// Checks and accounts for DATA. The bytes go to `direct` when nothing is queued before them, and what that does
    /// not take is queued. Returns whether something was queued.
    pub(crate) fn data(
        &mut self,
        offset: u64,
        bytes: &[u8],
        direct: impl FnOnce(&[u8]) -> usize,
    ) -> Result<bool, Contradiction> {
        require(self.end.is_none() && offset == self.received)?;
        let after = offset.checked_add(bytes.len() as u64);
        let after = after.filter(|after| *after <= self.limit);
        self.received = after.ok_or(Contradiction)?;
        if self.stopped {
            self.consumed = self.received;
            return Ok(false);
        }
        let mut rest = bytes;
        if self.ring.len() == 0 {
            let taken = direct(bytes).min(bytes.len());
            self.consumed += taken as u64;
            rest = &bytes[taken..];
        }
        self.ring.push(rest);
        Ok(!rest.is_empty())
    }

    /// EOF. Returns whether it is news.
    pub(crate) fn eof(&mut self, offset: u64, aborted: bool) -> Result<bool, Contradiction> {
        if let Some(end) = self.end {
            require(end == offset)?;
            return Ok(false);
        }
        require(offset == self.received || (aborted && offset > self.received))?;
        self.received = offset;
        self.end = Some(offset);
        if self.ring.len() == 0 {
            self.consumed = offset;
        }
        Ok(true)
    }

    pub(crate) fn peek(&self) -> &[u8] {
        self.ring.slices(0, WINDOW).0
    }

    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.ring.len());
        self.ring.pop(count);
        self.consumed += count as u64;
        if self.ring.len() == 0 && self.end.is_some() {
            // An aborted writer may have skipped bytes that never arrive.
            self.consumed = self.received;
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.end.is_some() && self.ring.len() == 0
    }

    pub(crate) fn stop(&mut self) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        self.stop_due = self.end.is_none();
        self.ring.clear();
        self.consumed = self.received;
    }

    pub(crate) fn entry(&self, stream: u32) -> TableEntry {
        TableEntry {
            stream,
            received: self.received,
            consumed: self.consumed,
            limit: self.limit,
        }
    }

    /// The byte stream is a new one: what was said on the old one may be lost.
    pub(crate) fn reattach(&mut self) {
        self.stop_due = self.stopped && self.end.is_none();
        self.window_due = true;
    }

    /// Appends the STOP and WINDOW frames that are due. Returns whether the stream is finished.
    pub(crate) fn fill(&mut self, stream: u32, out: &mut Vec<u8>) -> bool {
        if self.stop_due {
            self.stop_due = false;
            Frame::Stop { stream }.encode(out);
        }
        let fin = self.end == Some(self.consumed);
        if !fin && !self.window_due && self.consumed - self.reported < WINDOW_STEP {
            return false;
        }
        self.window_due = false;
        self.reported = self.consumed;
        self.limit = self.limit.max(self.consumed.saturating_add(WINDOW as u64));
        Frame::Window {
            stream,
            consumed: self.consumed,
            limit: self.limit,
            fin,
        }
        .encode(out);
        fin
    }
}
