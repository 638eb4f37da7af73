//! A byte queue that grows up to one window.

/// Every receiver's window in bytes, and so the most that either side keeps of a stream.
pub const WINDOW: usize = 262_144;

const FIRST_SIZE: usize = 4096;

/// A queue of bytes in a ring. Its memory starts small and grows to what was needed, at most the next power of two.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    buf: Vec<u8>,
    head: usize,
    len: usize,
}

impl Ring {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Free space at the end, contiguous, at most `want` bytes and at least one (when `want` is).
    pub(crate) fn spare(&mut self, want: usize) -> &mut [u8] {
        if self.len == 0 {
            self.head = 0;
        }
        if self.len == self.buf.len() {
            self.grow(self.len + 1);
        }
        let size = self.buf.len();
        let tail = self.head + self.len;
        let (from, to) = if tail < size {
            (tail, size)
        } else {
            (tail - size, self.head)
        };
        let to = to.min(from.saturating_add(want));
        &mut self.buf[from..to]
    }

    /// Takes `count` bytes, written into what [`Ring::spare`] gave, into the queue.
    pub(crate) fn commit(&mut self, count: usize) {
        self.len = (self.len + count).min(self.buf.len());
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.len + bytes.len() > self.buf.len() {
            self.grow(self.len + bytes.len());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let spare = self.spare(rest.len());
            let count = spare.len();
            spare.copy_from_slice(&rest[..count]);
            self.commit(count);
            rest = &rest[count..];
        }
    }

    /// Drops the first `count` bytes.
    pub(crate) fn pop(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.head += count;
        if self.head >= self.buf.len() {
            self.head -= self.buf.len();
        }
    }

    /// At most `count` bytes from the `skip`-th on, in two pieces.
    pub(crate) fn slices(&self, skip: usize, count: usize) -> (&[u8], &[u8]) {
        let skip = skip.min(self.len);
        let count = count.min(self.len - skip);
        let size = self.buf.len();
        let from = self.head + skip;
        if from >= size {
            let from = from - size;
            (&self.buf[from..from + count], &[])
        } else if from + count <= size {
            (&self.buf[from..from + count], &[])
        } else {
            (&self.buf[from..], &self.buf[..from + count - size])
        }
    }

    fn grow(&mut self, needed: usize) {
        let size = needed.next_power_of_two().max(FIRST_SIZE);
        let mut buf = vec![0; size];
        let (first, second) = self.slices(0, self.len);
        buf[..first.len()].copy_from_slice(first);
        buf[first.len()..self.len].copy_from_slice(second);
        self.buf = buf;
        self.head = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A ring behaves like a plain queue, whatever the sizes pushed and popped.
    #[test]
    fn ring_is_a_queue() {
        let mut ring = Ring::default();
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut seed: u64 = 7;
        let mut next = 0u8;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let amount = (seed >> 33) as usize % 3000;
            if seed >> 63 == 0 && model.len() + amount < WINDOW {
                let bytes: Vec<u8> = (0..amount)
                    .map(|_| {
                        next = next.wrapping_add(1);
                        next
                    })
                    .collect();
                ring.push(&bytes);
                model.extend(&bytes);
            } else {
                let amount = amount.min(model.len());
                let (a, b) = ring.slices(0, amount);
                let wanted: Vec<u8> = model.drain(..amount).collect();
                assert_eq!([a, b].concat(), wanted);
                ring.pop(amount);
            }
            assert_eq!(ring.len(), model.len());
        }
    }
}
