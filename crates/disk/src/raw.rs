//! A disk whose bytes are a file's bytes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;

use crate::storage::Storage;
use cloche_device::Slice;

/// Zeros that are written where the file system cannot make any by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// An open regular file or block device.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size_bytes: u64,
    is_readonly: bool,
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl RawFile {
    /// Takes an open file. Its size is what it is now.
    ///
    /// # Errors
    /// When it has no size, or is not open for what it shall be used for.
    pub fn new(mut file: File, is_readonly: bool) -> io::Result<Self> {
        let size_bytes = file.seek(SeekFrom::End(0))?;
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        let mode = flags & libc::O_ACCMODE;
        if mode == libc::O_WRONLY || (mode == libc::O_RDONLY && !is_readonly) {
            return Err(io::Error::other("the file is not open for this"));
        }
        Ok(RawFile {
            file,
            size_bytes,
            is_readonly,
        })
    }

    /// Where the next byte lies, from `offset` on, that may be other than zero; past the end when there is none.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub(crate) fn next_data(&self, offset: u64) -> io::Result<u64> {
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: no pointers. Nothing in this process uses the file's position.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), at, libc::SEEK_DATA) };
        if let Ok(found) = u64::try_from(found) {
            return Ok(found);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(u64::MAX),
            // A block device has no holes.
            Some(libc::EINVAL) => Ok(offset),
            _ => Err(error),
        }
    }

    /// Reads into memory that is not the guest's.
    ///
    /// # Errors
    /// When not all of it could be read.
    pub(crate) fn read_plain(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.read_exact_at(into, offset)
    }

    /// Moves all bytes of `slices`, in one system call unless the kernel stops halfway.
    fn transfer(
        &self,
        direction: Direction,
        offset: u64,
        slices: &[Slice<'_>],
    ) -> io::Result<usize> {
        let guards: Vec<_> = slices.iter().map(Slice::ptr_guard_mut).collect();
        let mut vectors: Vec<libc::iovec> = guards
            .iter()
            .filter(|guard| guard.len() > 0)
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        let mut rest = vectors.as_mut_slice();
        let mut done = 0;
        while !rest.is_empty() {
            let moved = self.transfer_some(direction, offset, done, rest)?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += moved;
            rest = advance(rest, moved);
        }
        Ok(done)
    }

    fn transfer_some(
        &self,
        direction: Direction,
        offset: u64,
        done: usize,
        vectors: &[libc::iovec],
    ) -> io::Result<usize> {
        let fd = self.file.as_raw_fd();
        let at = u64::try_from(done)
            .ok()
            .and_then(|done| offset.checked_add(done))
            .and_then(|at| i64::try_from(at).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let count = i32::try_from(vectors.len().min(libc::UIO_MAXIOV as usize))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        loop {
            let moved = match direction {
                // SAFETY: each vector is a stretch of guest memory that its guard keeps mapped; nothing in this process
                // has a reference into guest memory. A mapping cut short by its owner makes the call fail (EFAULT).
                Direction::Read => unsafe { libc::preadv(fd, vectors.as_ptr(), count, at) },
                // SAFETY: as above; the memory is only read.
                Direction::Write => unsafe { libc::pwritev(fd, vectors.as_ptr(), count, at) },
            };
            match usize::try_from(moved) {
                Ok(moved) => return Ok(moved),
                Err(_) => retry_interrupted()?,
            }
        }
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if length == 0 {
            return Ok(()); // an error to the kernel
        }
        loop {
            // SAFETY: no pointers.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } == 0 {
                return Ok(());
            }
            retry_interrupted()?;
        }
    }

    fn write_zeros_by_hand(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        while length > 0 {
            let count = usize::try_from(length).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            let zeros = ZEROS.get(..count).unwrap_or(&ZEROS);
            self.file.write_all_at(zeros, offset)?;
            offset += zeros.len() as u64;
            length -= zeros.len() as u64;
        }
        Ok(())
    }
}

impl Storage for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_readonly(&self) -> bool {
        self.is_readonly
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        let result = self.transfer(Direction::Read, offset, into);
        // The kernel wrote there behind the bitmap's back; also where it stopped halfway.
        for slice in into {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        result.map(drop)
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        self.transfer(Direction::Write, offset, from).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.allocate(mode, offset, length) {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // The range lies within the file. Beyond it, keeping the size would get round the limit on how large it may become.
        let keep = libc::FALLOC_FL_ZERO_RANGE;
        let mode = if may_unmap { hole } else { keep };
        match self.allocate(mode, offset, length) {
            Err(error) if is_unsupported(&error) => self.write_zeros_by_hand(offset, length),
            result => result,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

fn retry_interrupted() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        return Ok(());
    }
    Err(error)
}

/// What is left of `vectors` when `moved` bytes are done.
fn advance(vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    let mut whole = 0;
    for vector in vectors.iter_mut() {
        if moved < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
            vector.iov_len -= moved;
            break;
        }
        moved -= vector.iov_len;
        whole += 1;
    }
    vectors.get_mut(whole..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloche_device::Memory;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use vm_memory::{Bytes, GuestAddress, GuestMemory};

    fn temporary(size: u64) -> File {
        // SAFETY: a C string and no pointers besides.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was just made and belongs to nobody.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_back_through_other_slices() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let mut disk = RawFile::new(temporary(1 << 20), false).unwrap();
        let data: Vec<u8> = (0..4096_u32).map(|value| (value % 251) as u8).collect();
        memory.write_slice(&data, GuestAddress(0x1000)).unwrap();
        let from = [
            memory.get_slice(GuestAddress(0x1000), 100).unwrap(),
            memory.get_slice(GuestAddress(0x1064), 3996).unwrap(),
        ];
        disk.write(512, &from).unwrap();
        disk.flush().unwrap();
        let into = [
            memory.get_slice(GuestAddress(0x4000), 4000).unwrap(),
            memory.get_slice(GuestAddress(0x8000), 96).unwrap(),
        ];
        disk.read(512, &into).unwrap();
        let mut found = vec![0; 4096];
        let (first, second) = found.split_at_mut(4000);
        memory.read_slice(first, GuestAddress(0x4000)).unwrap();
        memory.read_slice(second, GuestAddress(0x8000)).unwrap();
        assert_eq!(found, data);
    }

    #[test]
    fn beyond_the_end_is_an_error_and_not_an_endless_loop() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let file = temporary(4096);
        let mut disk = RawFile::new(file.try_clone().unwrap(), true).unwrap();
        file.set_len(100).unwrap();
        let into = [memory.get_slice(GuestAddress(0), 512).unwrap()];
        assert!(disk.read(0, &into).is_err());
    }

    #[test]
    fn discarded_and_zeroed_ranges_read_as_zeros_and_take_no_space() {
        let file = temporary(1 << 20);
        let mut disk = RawFile::new(file.try_clone().unwrap(), false).unwrap();
        file.write_all_at(&[7; 65536], 0).unwrap();
        disk.discard(0, 16384).unwrap();
        disk.write_zeroes(16384, 16384, true).unwrap();
        disk.write_zeroes(32768, 16384, false).unwrap();
        disk.discard(0, 0).unwrap();
        let mut found = vec![1; 65536];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..49152].iter().all(|byte| *byte == 0));
        assert!(found[49152..].iter().all(|byte| *byte == 7));
        assert!(file.metadata().unwrap().blocks() * 512 <= 32768);
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn zeros_are_written_by_hand_where_the_file_system_makes_none() {
        let file = temporary(1 << 20);
        let disk = RawFile::new(file.try_clone().unwrap(), false).unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        disk.write_zeros_by_hand(1000, 150_000).unwrap();
        let mut found = vec![1; 200_000];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found[1000..151_000].iter().all(|byte| *byte == 0));
        assert_eq!((found[999], found[151_000]), (7, 7));
    }

    #[test]
    fn a_file_that_is_open_for_reading_only_is_not_written() {
        let file = temporary(4096);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let readable = File::open(&path).unwrap();
        assert!(RawFile::new(readable.try_clone().unwrap(), false).is_err());
        assert!(RawFile::new(readable, true).is_ok());
        let writable = File::options().write(true).open(&path).unwrap();
        assert!(RawFile::new(writable.try_clone().unwrap(), true).is_err());
        (&writable).write_all(b"still there").unwrap();
    }

    #[test]
    fn a_transfer_that_stops_halfway_goes_on_where_it_stopped() {
        let mut bytes = [0_u8; 10];
        let base = bytes.as_mut_ptr();
        let mut vectors = [
            libc::iovec {
                iov_base: base.cast(),
                iov_len: 4,
            },
            libc::iovec {
                iov_base: base.wrapping_add(4).cast(),
                iov_len: 6,
            },
        ];
        let rest = advance(&mut vectors, 5);
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].iov_len, 5);
        assert_eq!(rest[0].iov_base, base.wrapping_add(5).cast());
        assert!(advance(rest, 5).is_empty());
    }
}
