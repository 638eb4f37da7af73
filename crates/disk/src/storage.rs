//! What a disk's bytes are kept in.

use std::io;

use cloche_device::Slice;

/// A disk's bytes. Every range that is asked for lies within the size: the caller has seen to that.
pub trait Storage {
    /// Size in bytes; a multiple of 512 is used of it. Never changes.
    fn size_bytes(&self) -> u64;

    /// Whether it must not be changed.
    fn is_readonly(&self) -> bool;

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When not all of it could be read. What `into` holds then is undefined.
    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()>;

    /// Writes `from` to `offset`. It need not be durable before the next [`Storage::flush`].
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()>;

    /// Returns when everything written before would survive a loss of power.
    ///
    /// # Errors
    /// When that cannot be said. Whoever asks again must not be told otherwise.
    fn flush(&mut self) -> io::Result<()>;

    /// Gives up a range whose content is not needed any more. What is read there afterwards is anything.
    ///
    /// # Errors
    /// When it was tried and failed; a storage that cannot do it succeeds and does nothing.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros, and gives up its space if `may_unmap`.
    ///
    /// # Errors
    /// When not all of it could be zeroed.
    fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()>;
}
