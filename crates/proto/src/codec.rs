//! Primitives: little-endian integers, length-prefixed bytes and lists (`protocol/README.md`, section 1).

use thiserror::Error;

/// Why some bytes are not a well-formed message, or a message cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodecError {
    /// A length, count or integer reaches past the end of the input.
    #[error("the message ends too early")]
    Short,
    /// Bytes are left over after the last field.
    #[error("the message has trailing bytes")]
    Trailing,
    /// The message is longer than its kind may be.
    #[error("the message is longer than {limit} bytes")]
    TooLong {
        /// Largest size allowed, in bytes.
        limit: usize,
    },
    /// A type, operation or flag that this version does not know.
    #[error("unknown {what} {value}")]
    Unknown {
        /// What kind of number it is.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// A field's value is not allowed.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Shorthand for results of this module.
pub type Result<T> = core::result::Result<T, CodecError>;

/// A bounded reader over a byte slice. Every length is checked against what is left before anything is allocated.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts reading at the beginning of `input`.
    #[must_use]
    pub const fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes the next `count` bytes as they are.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.rest.len() {
            return Err(CodecError::Short);
        }
        let (head, tail) = self.rest.split_at(count);
        self.rest = tail;
        Ok(head)
    }

    /// Takes the next `N` bytes as an array.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Reads a `u8`.
    ///
    /// # Errors
    /// [`CodecError::Short`] at the end of the input.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Reads a `u16`.
    ///
    /// # Errors
    /// [`CodecError::Short`] at the end of the input.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads a `u32`.
    ///
    /// # Errors
    /// [`CodecError::Short`] at the end of the input.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a `u64`.
    ///
    /// # Errors
    /// [`CodecError::Short`] at the end of the input.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads `bytes`: a `u32` length and that many bytes, borrowed from the input.
    ///
    /// # Errors
    /// [`CodecError::Short`] when the length is more than what is left.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// Reads `bytes` into a vector of its own.
    ///
    /// # Errors
    /// [`CodecError::Short`] when the length is more than what is left.
    pub fn byte_vec(&mut self) -> Result<Vec<u8>> {
        Ok(self.bytes()?.to_vec())
    }

    /// Reads `list<T>`. `min_size` is the smallest encoding of one `T` in bytes; the count is checked against it first,
    /// so that a forged count allocates nothing.
    ///
    /// # Errors
    /// [`CodecError::Short`] when the count cannot fit in what is left, and whatever `item` returns.
    pub fn list<T>(
        &mut self,
        min_size: usize,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / min_size.max(1) {
            return Err(CodecError::Short);
        }
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(item(self)?);
        }
        Ok(out)
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] when bytes are left.
    pub const fn finish(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing)
        }
    }
}

/// A writer that refuses, at its end, a message longer than its limit.
#[derive(Debug)]
pub struct Writer {
    buf: Vec<u8>,
    limit: usize,
    overflow: bool,
}

impl Writer {
    /// An empty message of at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            buf: Vec::new(),
            limit,
            overflow: false,
        }
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        if self.overflow || bytes.len() > self.limit - self.buf.len() {
            self.overflow = true;
        } else {
            self.buf.extend_from_slice(bytes);
        }
        self
    }

    /// Appends a `u8`.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Appends a `u16`.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends a `u32`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends a `u64`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends `bytes`: length and content.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.count(value.len()).raw(value)
    }

    /// Appends `list<T>`: count and items.
    pub fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.count(items.len());
        for one in items {
            item(self, one);
        }
        self
    }

    /// Ends the message.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when more was written than the limit allows.
    pub fn finish(self) -> Result<Vec<u8>> {
        if self.overflow {
            Err(CodecError::TooLong { limit: self.limit })
        } else {
            Ok(self.buf)
        }
    }

    /// Marks the message as too long, whatever was written.
    pub fn overflow(&mut self) -> &mut Self {
        self.overflow = true;
        self
    }

    fn count(&mut self, count: usize) -> &mut Self {
        match u32::try_from(count) {
            Ok(value) => self.u32(value),
            Err(_) => self.overflow(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written is read back, and nothing is left.
    #[test]
    fn primitives_round_trip() {
        let mut w = Writer::new(64);
        w.u8(1).u16(2).u32(3).u64(4).bytes(b"abc");
        w.list(&[7u32, 8], |w, v| {
            w.u32(*v);
        });
        let out = w.finish().unwrap();
        let mut r = Reader::new(&out);
        assert_eq!((r.u8(), r.u16(), r.u32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!((r.u64(), r.bytes()), (Ok(4), Ok(&b"abc"[..])));
        assert_eq!(r.list(4, Reader::u32), Ok(vec![7, 8]));
        assert_eq!(r.finish(), Ok(()));
    }

    /// A forged length or count is refused before anything is allocated.
    #[test]
    fn forged_lengths_are_refused() {
        assert_eq!(Reader::new(&[0xFF; 8]).byte_vec(), Err(CodecError::Short));
        assert_eq!(
            Reader::new(&[0xFF; 8]).list(1, Reader::u8),
            Err(CodecError::Short)
        );
        assert_eq!(Reader::new(&[1, 2, 3]).u32(), Err(CodecError::Short));
        assert_eq!(Reader::new(&[1]).finish(), Err(CodecError::Trailing));
    }

    /// A writer past its limit gives an error and no half message.
    #[test]
    fn writer_is_bounded() {
        let mut w = Writer::new(5);
        w.u32(1).u16(2).u8(3);
        assert_eq!(w.finish(), Err(CodecError::TooLong { limit: 5 }));
    }
}
