//! What a tree's server must know again after a restore: which number stands for which place.
//!
//! `"clochefs" version:u32 next:u64`, then for each inode but the root, parents first,
//! `number:u64 parent:u64 lookups:u64 length:u32 name[length]`. All integers are little-endian.

use std::ffi::CString;
use std::io::{self, Read, Write};

use crate::nodes::{Nodes, ROOT};
use crate::request::check_name;

const MAGIC: [u8; 8] = *b"clochefs";
const VERSION: u32 = 1;
const MAX_NAME: u32 = 255;

/// One inode of a saved state.
#[derive(Debug, PartialEq, Eq)]
pub struct Saved {
    /// The guest's number for it.
    pub number: u64,
    /// The directory it is in.
    pub parent: u64,
    /// How often the guest looked it up.
    pub lookups: u64,
    /// Its name there.
    pub name: CString,
}

/// Writes what the guest knows.
///
/// # Errors
/// When the other end cannot take it.
pub fn save(nodes: &Nodes, out: impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&nodes.next().to_le_bytes())?;
    for (number, node) in nodes.in_order() {
        for field in [number, node.parent, node.lookups()] {
            out.write_all(&field.to_le_bytes())?;
        }
        let name = node.name.to_bytes();
        out.write_all(&(name.len() as u32).to_le_bytes())?;
        out.write_all(name)?;
    }
    out.flush()
}

/// A state that is being read. Nothing is kept of it but where it stands: whoever reads decides what is too much.
#[derive(Debug)]
pub struct Loading<R: Read> {
    input: io::BufReader<R>,
    next: u64,
    last: u64,
}

impl<R: Read> Loading<R> {
    /// Reads the beginning of what [`save`] wrote.
    ///
    /// # Errors
    /// `InvalidData` when it is not a state, or one of another version.
    pub fn begin(input: R) -> io::Result<Self> {
        let mut input = io::BufReader::new(input);
        let mut magic = [0; 8];
        input.read_exact(&mut magic)?;
        if magic != MAGIC || read_u32(&mut input)? != VERSION {
            return Err(invalid(
                "not the state of a tree, or one of another version",
            ));
        }
        let next = read_u64(&mut input)?;
        Ok(Loading {
            input,
            next,
            last: ROOT,
        })
    }

    /// The number that the next new inode gets.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Reads the next inode; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` when it makes no sense, `UnexpectedEof` when it is cut.
    pub fn read(&mut self) -> io::Result<Option<Saved>> {
        let Some(one) = read_one(&mut self.input)? else {
            return Ok(None);
        };
        if one.number <= self.last || one.number >= self.next || one.parent >= one.number {
            return Err(invalid("inodes out of order"));
        }
        self.last = one.number;
        Ok(Some(one))
    }
}

fn read_one(input: &mut impl Read) -> io::Result<Option<Saved>> {
    let mut number = [0; 8];
    // The end of the state is the end of the stream, before the first byte of an inode.
    if input.read(&mut number[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut number[1..])?;
    let (parent, lookups, length) = (read_u64(input)?, read_u64(input)?, read_u32(input)?);
    if length > MAX_NAME {
        return Err(invalid("a name is too long"));
    }
    let mut name = vec![0; length as usize];
    input.read_exact(&mut name)?;
    let name = CString::new(name).map_err(|_| invalid("a name with a nul byte"))?;
    check_name(&name)?;
    Ok(Some(Saved {
        number: u64::from_le_bytes(number),
        parent,
        lookups,
        name,
    }))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// An error that says what makes no sense about a state.
pub fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::Key;

    fn key(ino: u64) -> Key {
        Key {
            dev: 1,
            ino,
            mount: 1,
        }
    }

    fn load(input: &[u8]) -> io::Result<(u64, Vec<Saved>)> {
        let mut loading = Loading::begin(input)?;
        let mut saved = Vec::new();
        while let Some(one) = loading.read()? {
            saved.push(one);
        }
        Ok((loading.next_number(), saved))
    }

    fn state() -> Vec<u8> {
        let mut nodes = Nodes::new(key(1));
        let dir = nodes.remember(ROOT, c"dir", key(2), libc::S_IFDIR).unwrap();
        nodes.remember(dir, c"file", key(3), libc::S_IFREG).unwrap();
        nodes.remember(dir, c"file", key(3), libc::S_IFREG).unwrap();
        let mut bytes = Vec::new();
        save(&nodes, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let (next, saved) = load(&state()).unwrap();
        let expected = [
            Saved {
                number: 2,
                parent: ROOT,
                lookups: 1,
                name: c"dir".into(),
            },
            Saved {
                number: 3,
                parent: 2,
                lookups: 2,
                name: c"file".into(),
            },
        ];
        assert_eq!((next, saved.as_slice()), (4, expected.as_slice()));
    }

    #[test]
    fn a_state_cut_anywhere_within_an_inode_is_refused() {
        let bytes = state();
        let first = 20 + 28 + 3;
        for length in (0..bytes.len()).filter(|length| *length != 20 && *length != first) {
            assert!(load(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_state_that_makes_no_sense_is_refused() {
        for (place, value) in [
            (0, b'x'),
            (8, 2),
            (12, 3),
            (20, 9),
            (28, 2),
            (44, 255),
            (48, b'/'),
        ] {
            let mut bytes = state();
            bytes[place] = value;
            assert!(load(&bytes).is_err(), "{place}");
        }
    }
}
