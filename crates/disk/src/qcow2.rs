//! A disk whose bytes are kept in a qcow2 image.
//!
//! The image says what else it consists of (a backing file, a data file). None of that is opened: a guest could have
//! written the image, and this process has no names to open anyway.

use std::fs::File;
use std::io;

use cloche_device::Slice;
use imago::file::File as ImageFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use crate::storage::Storage;

/// An open image.
#[derive(Debug)]
pub struct Qcow2File {
    image: FormatAccess<ImageFile>,
    is_readonly: bool,
}

impl Qcow2File {
    /// Takes an open image.
    ///
    /// # Errors
    /// When it is none, is damaged, or consists of more than this file.
    pub fn new(file: File, is_readonly: bool) -> io::Result<Self> {
        let file = ImageFile::try_from(file)?;
        let image = Qcow2::<ImageFile>::builder(file)
            .write(!is_readonly)
            .open(DenyImplicitOpenGate::default())
            .map_err(|error| {
                io::Error::other(format!("the qcow2 image cannot be used: {error}"))
            })?;
        Ok(Qcow2File {
            image: FormatAccess::new(image),
            is_readonly,
        })
    }

    /// Hands what the library keeps to itself over to the kernel: a request that was answered must be in the file when
    /// this process dies.
    fn hand_over(&self, changed: io::Result<()>) -> io::Result<()> {
        changed.and_then(|()| self.image.flush())
    }
}

impl Storage for Qcow2File {
    fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    fn is_readonly(&self) -> bool {
        self.is_readonly
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        // The guard marks what was written in the memory's bitmap when it goes.
        let (vector, _guard) = IoVectorMut::from_volatile_slice(into);
        self.image.readv(vector, offset)
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(from);
        let written = self.image.writev(vector, offset);
        self.hand_over(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let discarded = self.image.discard_to_any(offset, length);
        self.hand_over(discarded)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let zeroed = if may_unmap {
            self.image.discard_to_zero(offset, length)
        } else {
            self.image.write_zeroes(offset, length)
        };
        self.hand_over(zeroed)
    }
}
