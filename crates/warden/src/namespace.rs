//! User namespaces: which ids exist in them.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::failure::{Failure, Outcome, Step};
use crate::sys::{self, Errno};

/// The contents of the three files that set up a user namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct IdMaps {
    uids: Vec<u8>,
    gids: Vec<u8>,
    deny_setgroups: bool,
}

impl IdMaps {
    /// The caller's own ids, mapped to themselves, and nothing else.
    pub fn own() -> Self {
        let (uid, gid) = sys::ids();
        Self {
            uids: format!("{uid} {uid} 1\n").into_bytes(),
            gids: format!("{gid} {gid} 1\n").into_bytes(),
            deny_setgroups: true,
        }
    }

    /// Every id that exists here, mapped to itself.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn all() -> Outcome<Self> {
        Ok(Self {
            uids: identity(&read_file(c"/proc/self/uid_map")?),
            gids: identity(&read_file(c"/proc/self/gid_map")?),
            deny_setgroups: false,
        })
    }

    /// Writes the maps of the process whose directory in /proc `process` is.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn write(&self, process: &OwnedFd) -> Outcome {
        if self.deny_setgroups {
            write_file(process, c"setgroups", b"deny")?;
        }
        write_file(process, c"gid_map", &self.gids)?;
        write_file(process, c"uid_map", &self.uids)
    }
}

/// Opens the directory of a process in /proc.
///
/// # Errors
/// When it is not there.
pub fn process_directory(name: &CStr) -> Outcome<OwnedFd> {
    sys::open_at(sys::CWD, name, libc::O_PATH | libc::O_DIRECTORY, 0).step(name.to_bytes())
}

/// Turns lines of `inside outside count` into lines that map every id that exists inside to itself.
fn identity(map: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in map.split(|byte| *byte == b'\n') {
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        if let (Some(inside), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            out.extend_from_slice(&[inside, b" ", inside, b" ", count, b"\n"].concat());
        }
    }
    out
}

fn read_file(path: &CStr) -> Outcome<Vec<u8>> {
    let fd = sys::open_at(sys::CWD, path, libc::O_RDONLY, 0).step(path.to_bytes())?;
    // The kernel takes maps of up to a page, and gives no longer ones.
    let mut buffer = vec![0; 65536];
    let count = sys::read(fd.as_fd(), &mut buffer).step(path.to_bytes())?;
    if count == buffer.len() {
        return Err(Failure::new(path.to_bytes(), Errno(libc::EFBIG)));
    }
    buffer.truncate(count);
    Ok(buffer)
}

fn write_file(dir: &OwnedFd, name: &CStr, content: &[u8]) -> Outcome {
    let what = name.to_bytes();
    let fd = sys::open_at(dir.as_raw_fd(), name, libc::O_WRONLY, 0).step(what)?;
    sys::write_all(fd.as_fd(), content).step(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line maps its inner ids to themselves, whatever they are outside.
    #[test]
    fn identity_keeps_the_inner_ids() {
        let map = b"         0     100000      65536\n     65536          7          1\n";
        assert_eq!(identity(map), b"0 0 65536\n65536 65536 1\n");
        assert_eq!(identity(b"\n  1 2\n"), b"");
    }
}
