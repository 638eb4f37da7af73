//! What whoever has started a server of shares tells it: which share was taken away (`protocol/shares.md`).
//!
//! Taking the mount away is not enough: a descriptor that the server holds leads to a file whether or not it can still be
//! found by a name.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use cloche_device::{Turn, Watch};

use crate::share::ShareFs;

/// Bytes of an order: the number of a share.
const ORDER: usize = 4;

/// The other end of the supervisor's socket.
pub struct Orders {
    socket: File,
    files: ShareFs,
    /// The beginning of an order that has not come whole.
    begun: Vec<u8>,
    /// The supervisor has gone, or cannot be understood.
    is_over: bool,
}

impl Orders {
    /// Takes orders about `files` from `socket`.
    #[must_use]
    pub fn new(socket: OwnedFd, files: ShareFs) -> Self {
        Orders {
            // A file, because it is read and written with the calls that the filter allows.
            socket: File::from(socket),
            files,
            begun: Vec::with_capacity(ORDER),
            is_over: false,
        }
    }

    /// What to wait for, as long as there may be orders.
    #[must_use]
    pub fn watch(&self) -> Option<Watch> {
        (!self.is_over).then(|| Watch {
            fd: self.socket.as_raw_fd(),
            read: Some(Turn::Device),
            write: None,
        })
    }

    /// Carries out what can be read.
    pub fn obey(&mut self) {
        self.is_over = !self.obey_one();
    }

    /// Reads once, and carries out an order that is whole; returns whether more may come.
    fn obey_one(&mut self) -> bool {
        let mut bytes = [0; ORDER];
        let Some(room) = bytes.get_mut(self.begun.len()..) else {
            return false;
        };
        let count = match self.socket.read(room) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                log::error!("the supervisor cannot be heard: {error}");
                return false;
            }
        };
        self.begun.extend(room.iter().take(count));
        let Ok(order) = <[u8; ORDER]>::try_from(self.begun.as_slice()) else {
            return true;
        };
        self.begun.clear();
        match self.socket.write_all(&self.carry_out(order)) {
            Ok(()) => true,
            Err(error) => {
                log::error!("the supervisor cannot be told: {error}");
                false
            }
        }
    }

    fn carry_out(&self, order: [u8; ORDER]) -> Vec<u8> {
        let number = u32::from_le_bytes(order);
        let (errno, count) = match self.files.let_go(number.to_string().as_bytes()) {
            Ok(count) => (0, u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), 0),
        };
        [number, errno.unsigned_abs(), count]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect()
    }
}
