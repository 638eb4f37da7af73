//! What a VMM says is the saved state of a share, looked at before the virtiofsd library believes it.
//!
//! The library reads all there is into memory and follows every name in it. A VMM that has been taken over could send it any
//! number of inodes, and names that lead out of the share. So a state is read up to a limit, and each inode of it must be what
//! the library itself writes: one name in the directory of another, held often enough.
//!
//! The format is the library's (`passthrough/device_state/serialized.rs`), written by postcard: integers are little-endian base
//! 128, sequences have their length in front, variants and options their number.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::FromRawFd;

use crate::budget::{Known, Place};
use crate::nodes::ROOT;
use crate::request::check_name;
use crate::tree_state::invalid;

/// Bytes of an inode with the longest name, and of an open file.
const MOST_INODE: u64 = 4 * 10 + 255;
const MOST_HANDLE: u64 = 3 * 10;
/// Bytes of all the rest: counts, the numbers that come next, options.
const MOST_REST: u64 = 64;
/// Bytes of a state, whatever the limit of descriptors is.
const MOST_BYTES: u64 = 64 << 20;

/// The second version, the only one that is written.
const VERSION: u64 = 1;
const AT_ROOT: u64 = 0;
const AT_PATH: u64 = 1;
const NOWHERE: u64 = 2;

/// What the guest holds by a state.
#[derive(Debug, Default)]
pub struct Holding {
    /// Inodes by their number.
    pub inodes: HashMap<u64, Known>,
    /// Open files: handle and inode.
    pub handles: Vec<(u64, u64)>,
}

/// What a state that was looked at is handed to the library in. Made beforehand: the filter of system calls makes no files.
#[derive(Debug)]
pub struct Vessel(File);

impl Vessel {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a C string and no other pointers.
        let fd = unsafe { libc::memfd_create(c"state".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody.
        Ok(Vessel(unsafe { File::from_raw_fd(fd) }))
    }

    /// Reads a state to its end; what comes back can be given to the library. `descriptors` is how many the guest may hold.
    ///
    /// # Errors
    /// `InvalidData` when it is longer than any, or is not what the library writes.
    pub fn fill(self, from: impl Read, descriptors: u64) -> io::Result<(File, Holding)> {
        let most = descriptors
            .saturating_mul(MOST_INODE + MOST_HANDLE)
            .saturating_add(MOST_REST)
            .min(MOST_BYTES);
        let mut bytes = Vec::new();
        from.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(invalid("a state of a share that is too long"));
        }
        let held = check(&bytes, descriptors)?;
        let mut file = self.0;
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok((file, held))
    }
}

/// Looks through a state, and returns what the guest holds by it; `descriptors` is the most that inodes and open files may
/// be together.
fn check(bytes: &[u8], descriptors: u64) -> io::Result<Holding> {
    let mut input = Input(bytes);
    if input.number()? != VERSION {
        return Err(invalid("the state of a share of another version"));
    }
    let count = input.number()?;
    if count > descriptors {
        return Err(invalid("more inodes than the guest may hold"));
    }
    // How often each is held, and by how many inodes in it.
    let mut held: HashMap<u64, u64> = HashMap::new();
    let mut children: HashMap<u64, Vec<(u64, &[u8])>> = HashMap::new();
    let mut last = 0;
    for _ in 0..count {
        let (number, times) = (input.number()?, input.number()?);
        if let Some((parent, name)) = input.place(number)? {
            children.entry(parent).or_default().push((number, name));
        }
        // A file handle to compare with is never asked for.
        if input.byte()? != 0 {
            return Err(invalid("an inode with a file handle"));
        }
        last = last.max(number);
        if held.insert(number, times).is_some() {
            return Err(invalid("an inode that is there twice"));
        }
    }
    if children.iter().any(|(parent, inside)| {
        held.get(parent)
            .is_none_or(|times| *times < inside.len() as u64)
    }) {
        return Err(invalid("an inode held less often than it must be"));
    }
    if input.number()? <= last {
        return Err(invalid("an inode with a number that is yet to come"));
    }
    let inodes = find_places(&held, &children);
    let handles = read_handles(&mut input, descriptors - count)?;
    for _ in 0..4 {
        if input.byte()? > 1 {
            return Err(invalid("an option that is neither on nor off"));
        }
    }
    // Places of file handles, of which there are none.
    if input.number()? != 0 || !input.0.is_empty() {
        return Err(invalid("more than a state"));
    }
    Ok(Holding { inodes, handles })
}

/// Returns how often the guest holds each inode, and the directory of the root it lies in. What an inode is held by those
/// in it is over when the library has found them.
fn find_places(
    held: &HashMap<u64, u64>,
    children: &HashMap<u64, Vec<(u64, &[u8])>>,
) -> HashMap<u64, Known> {
    let mut found = HashMap::new();
    let mut open: Vec<(u64, Place)> = vec![(ROOT, Place::default())];
    while let Some((number, place)) = open.pop() {
        let inside = children.get(&number).map_or(&[][..], Vec::as_slice);
        for &(child, name) in inside {
            // What lies in the root is a place of its own, everything below belongs to it.
            let place = if number == ROOT {
                name.into()
            } else {
                place.clone()
            };
            open.push((child, place));
        }
        let times = held.get(&number).copied().unwrap_or_default();
        let lookups = times.saturating_sub(inside.len() as u64);
        if number != ROOT && lookups > 0 {
            found.insert(number, Known { lookups, place });
        }
    }
    found
}

/// Returns the open files: handle and inode.
fn read_handles(input: &mut Input<'_>, most: u64) -> io::Result<Vec<(u64, u64)>> {
    let count = input.number()?;
    if count > most {
        return Err(invalid("more open files than the guest may hold"));
    }
    let mut handles = Vec::new();
    for _ in 0..count {
        handles.push((input.number()?, input.number()?));
        let (source, _flags) = (input.number()?, input.number()?);
        if source != 0 {
            return Err(invalid("an open file from nowhere"));
        }
    }
    input.number()?;
    Ok(handles)
}

/// What has not been read yet.
struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn bytes(&mut self, count: u64) -> io::Result<&'b [u8]> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (front, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(front)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.bytes(1)?
            .first()
            .copied()
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number that is too large"))
    }

    /// Reads where an inode is, and returns the directory it is in and its name there, if it is in one.
    fn place(&mut self, number: u64) -> io::Result<Option<(u64, &'b [u8])>> {
        match self.number()? {
            AT_ROOT if number == ROOT => Ok(None),
            AT_PATH if number != ROOT => {
                let parent = self.number()?;
                let length = self.number()?;
                let name = self.bytes(length)?;
                check_name(&CString::new(name)?)?;
                Ok(Some((parent, name)))
            }
            NOWHERE if number != ROOT => Ok(None),
            _ => Err(invalid("an inode that is elsewhere")),
        }
    }
}

#[cfg(test)]
#[path = "share_state_tests.rs"]
mod tests;
