//! Frames on a byte stream, each behind its length in four bytes, highest first: what QEMU's `-netdev stream` and
//! passt speak.

use std::io;
use std::ops::Range;

/// Bytes of a length.
const PREFIX: usize = 4;
/// The longest frame that anybody who speaks this sends (QEMU's NET_BUFSIZE). More is no length but noise.
pub const LONGEST_SPOKEN: usize = (4 << 10) + (64 << 10);
/// Bytes kept in each direction, at most; several of the longest frames that are handed on.
pub const BUFFER: usize = 64 << 10;

/// The stream is no stream of frames: what follows cannot be told from noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLength(pub usize);

/// Frames that come in.
#[derive(Debug)]
pub struct Incoming {
    buffer: Box<[u8]>,
    /// What was read and not looked at.
    filled: Range<usize>,
    /// Bytes still to come of a frame that nobody wants.
    skipped: usize,
    shortest: usize,
    longest: usize,
}

/// What stands at the front of what came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// A whole frame: see [`Incoming::frame`].
    Frame,
    /// The beginning of one, or nothing.
    Part,
    /// One that was longer than the longest has just been taken away.
    Long,
}

impl Incoming {
    /// Takes frames of `shortest` to `longest` bytes.
    #[must_use]
    pub fn new(shortest: usize, longest: usize) -> Self {
        Incoming {
            buffer: vec![0; BUFFER].into(),
            filled: 0..0,
            skipped: 0,
            shortest,
            longest: longest.min(BUFFER - PREFIX),
        }
    }

    /// Looks at what stands at the front.
    ///
    /// # Errors
    /// When it cannot be a frame.
    pub fn look(&mut self) -> Result<Front, BadLength> {
        let skipped = self.skipped.min(self.filled.len());
        self.filled.start += skipped;
        self.skipped -= skipped;
        let Some(length) = self.length() else {
            return Ok(Front::Part);
        };
        if length < self.shortest || length > LONGEST_SPOKEN {
            return Err(BadLength(length));
        }
        if length > self.longest {
            self.filled.start += PREFIX;
            self.skipped = length;
            return Ok(Front::Long);
        }
        let is_whole = self.filled.len() >= PREFIX + length;
        Ok(if is_whole { Front::Frame } else { Front::Part })
    }

    fn length(&self) -> Option<usize> {
        let bytes = self.buffer.get(self.filled.clone())?;
        let prefix = bytes.first_chunk::<PREFIX>()?;
        // A number of 32 bits fits.
        Some(usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX))
    }

    fn place(&self) -> Range<usize> {
        let start = self.filled.start + PREFIX;
        start..start + self.length().unwrap_or(0)
    }

    /// The frame at the front, if [`Incoming::look`] has just found one there.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.buffer.get(self.place()).unwrap_or_default()
    }

    /// Takes it away.
    pub fn take(&mut self) {
        self.filled.start = self.place().end.min(self.filled.end);
    }

    /// Reads as much as there is room for; returns whether that was all there is.
    ///
    /// # Errors
    /// What `read` says, and [`io::ErrorKind::UnexpectedEof`] at the end.
    pub fn read(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
        // Less than one frame is left, or the room would not have been asked for.
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let room = self.buffer.get_mut(self.filled.end..).unwrap_or_default();
        let most = room.len();
        let count = read(room)?.min(most);
        self.filled.end += count;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count < most)
    }
}

/// Frames that go out.
#[derive(Debug)]
pub struct Outgoing {
    buffer: Box<[u8]>,
    filled: Range<usize>,
    longest: usize,
}

impl Outgoing {
    /// Takes frames of up to `longest` bytes.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        Outgoing {
            buffer: vec![0; BUFFER].into(),
            filled: 0..0,
            longest: longest.min(BUFFER - PREFIX),
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Whether the longest frame has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.buffer.len() - self.filled.end >= PREFIX + self.longest
    }

    /// Adds a frame that `write` writes and whose length it returns; one that it refuses, or that has no room, is not added.
    ///
    /// # Errors
    /// What `write` says.
    pub fn add<E>(&mut self, write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let start = self.filled.end + PREFIX;
        let room = self.buffer.get_mut(start..).unwrap_or_default();
        let most = room.len().min(self.longest);
        let length = write(&mut room[..most])?.min(most);
        let prefix = u32::try_from(length).unwrap_or(0).to_be_bytes();
        if let Some(place) = self.buffer.get_mut(self.filled.end..start) {
            place.copy_from_slice(&prefix);
            self.filled.end = start + length;
        }
        Ok(())
    }

    /// Writes as much as `write` takes. Half a frame may be left, and goes first the next time.
    ///
    /// # Errors
    /// What `write` says, but for [`io::ErrorKind::WouldBlock`].
    pub fn write(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while !self.filled.is_empty() {
            let bytes = self.buffer.get(self.filled.clone()).unwrap_or_default();
            match write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.filled.start += count.min(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    fn feed(incoming: &mut Incoming, bytes: &[u8]) -> bool {
        incoming
            .read(|room| {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            })
            .unwrap()
    }

    #[test]
    fn frames_come_in_whole_however_they_are_cut() {
        let frames: Vec<Vec<u8>> = (14..200).map(|length| vec![length as u8; length]).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| spoken(frame)).collect();
        for cut in [1, 2, 3, 5, 17, 1000, bytes.len()] {
            let mut incoming = Incoming::new(14, 1518);
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                assert!(feed(&mut incoming, piece));
                while incoming.look() == Ok(Front::Frame) {
                    found.push(incoming.frame().to_vec());
                    incoming.take();
                }
            }
            assert_eq!(found, frames, "{cut}");
            assert_eq!(incoming.look(), Ok(Front::Part));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_left_out_and_the_next_is_found() {
        let mut incoming = Incoming::new(14, 100);
        feed(&mut incoming, &spoken(&[1; 101]));
        feed(&mut incoming, &spoken(&[2; 100]));
        assert_eq!(incoming.look(), Ok(Front::Long));
        assert_eq!(incoming.look(), Ok(Front::Frame));
        assert_eq!(incoming.frame(), [2; 100]);
        incoming.take();
        // One that does not fit into the buffer at all.
        feed(&mut incoming, &(LONGEST_SPOKEN as u32).to_be_bytes());
        assert_eq!(incoming.look(), Ok(Front::Long));
        let mut left = LONGEST_SPOKEN;
        while left > 0 {
            assert_eq!(incoming.look(), Ok(Front::Part));
            let piece = left.min(BUFFER);
            feed(&mut incoming, &vec![9; piece]);
            left -= piece;
        }
        assert_eq!(incoming.look(), Ok(Front::Part));
        feed(&mut incoming, &spoken(&[3; 14]));
        assert_eq!(incoming.look(), Ok(Front::Frame));
        assert_eq!(incoming.frame(), [3; 14]);
    }

    #[test]
    fn lengths_that_lie_are_no_frames() {
        for length in [0, 1, 13, LONGEST_SPOKEN as u32 + 1, 0x7FFF_FFFF, u32::MAX] {
            let mut incoming = Incoming::new(14, 1518);
            feed(&mut incoming, &length.to_be_bytes());
            assert_eq!(incoming.look(), Err(BadLength(length as usize)));
        }
    }

    #[test]
    fn the_end_and_a_full_read_are_told() {
        let mut incoming = Incoming::new(14, 1518);
        assert!(!incoming.read(|room| Ok(room.len())).unwrap());
        let mut incoming = Incoming::new(14, 1518);
        let end = incoming.read(|_| Ok(0)).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_goes_out_stays_in_order_however_little_is_taken() {
        let mut outgoing = Outgoing::new(1518);
        let mut expected = Vec::new();
        let mut written = Vec::new();
        for number in 0..1000_usize {
            let frame = vec![number as u8; 14 + number];
            if !outgoing.has_room() {
                outgoing
                    .write(|bytes| {
                        if written.len() % 7 == 6 {
                            written.push(bytes[0]);
                            return Err(io::ErrorKind::WouldBlock.into());
                        }
                        let count = bytes.len().min(333);
                        written.extend_from_slice(&bytes[..count]);
                        Ok(count)
                    })
                    .unwrap();
                written.clear();
                expected.clear();
                outgoing = Outgoing::new(1518);
            }
            expected.extend(spoken(&frame));
            outgoing
                .add(|room| {
                    room[..frame.len()].copy_from_slice(&frame);
                    Ok::<_, ()>(frame.len())
                })
                .unwrap();
        }
        let mut turns = 0;
        while !outgoing.is_empty() {
            outgoing
                .write(|bytes| {
                    turns += 1;
                    if turns % 3 == 0 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    let count = bytes.len().min(333);
                    written.extend_from_slice(&bytes[..count]);
                    Ok(count)
                })
                .unwrap();
        }
        assert!(written == expected);
    }

    #[test]
    fn a_frame_that_is_refused_leaves_nothing() {
        let mut outgoing = Outgoing::new(1518);
        assert_eq!(outgoing.add(|_| Err("no")), Err("no"));
        assert!(outgoing.is_empty());
    }
}
