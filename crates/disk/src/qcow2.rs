//! A disk whose bytes are kept in a qcow2 image.
//!
//! The image says what else it consists of (a backing file, a data file). None of that is opened: a guest could have
//! written the image, and this process has no names to open anyway.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cloche_device::Slice;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use crate::bytes::{fill_front, take_front, total_len};
use crate::storage::Storage;

/// Bytes that are moved at a time. Not straight out of the guest's memory: the library takes what nobody else may change.
const PART: usize = 1 << 20;

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
        let is_counted = is_readonly || counts_itself(&file);
        let file = ImageFile::try_from(file)?;
        let image = Qcow2::<ImageFile>::builder(file)
            .write(!is_readonly)
            .open(DenyImplicitOpenGate::default())
            .map_err(|error| {
                io::Error::other(format!("the qcow2 image cannot be used: {error}"))
            })?;
        if !is_counted {
            let text = "the qcow2 image cannot be used: it does not count its own header as used";
            return Err(io::Error::other(text));
        }
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
        let mut slices = into.to_vec();
        let mut buffer = vec![0; PART];
        let mut offset = offset;
        loop {
            let count = part_of(total_len(&slices));
            let Some(part) = buffer.get_mut(..count).filter(|part| !part.is_empty()) else {
                return Ok(());
            };
            self.image.read(&mut *part, offset)?;
            fill_front(&mut slices, part);
            offset += count as u64;
        }
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        let mut slices = from.to_vec();
        let mut buffer = vec![0; PART];
        let mut offset = offset;
        loop {
            let count = take_front(&mut slices, &mut buffer);
            let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
                return self.image.flush();
            };
            self.image.write(part, offset)?;
            offset += count as u64;
        }
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

/// Whether the first clusters of an image (its header is one of them) are counted as used. If not, the library would put
/// new clusters there, find that they still are not counted, and call itself without end.
fn counts_itself(file: &File) -> bool {
    // In the header: where the table of reference counts is, and behind that how many clusters it has; and the bits of its
    // entries that are an offset (QEMU, docs/interop/qcow2.txt).
    const TABLE: u64 = 48;
    const CLUSTERS: u64 = 56;
    const OFFSET: u64 = 0xFFFF_FFFF_FFFF_FE00;
    let word = |offset| {
        let mut bytes = [0; 8];
        let read = file.read_exact_at(&mut bytes, offset);
        read.map_or(0, |()| u64::from_be_bytes(bytes))
    };
    word(CLUSTERS) >> 32 != 0 && word(word(TABLE)) & OFFSET != 0
}

/// How much of what is left is moved next.
fn part_of(left: u64) -> usize {
    usize::try_from(left).map_or(PART, |left| left.min(PART))
}
