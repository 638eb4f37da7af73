//! Parts of a frontend's messages, and what is answered to those that cannot be obeyed.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};

use crate::inherited::file_type;
use crate::memory::Region;
use crate::process::set_nonblocking;

pub(crate) fn refused(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

pub(crate) fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered"))
}

pub(crate) fn region(region: &VhostUserMemoryRegion) -> Region {
    Region {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

/// An event descriptor (the kernel's own kind of file) that cannot block this process.
pub(crate) fn event(file: Option<File>) -> Result<Option<File>> {
    if let Some(file) = &file {
        if file_type(file).map_err(refused)? != 0 {
            return Err(refused(io::Error::other("not an event descriptor")));
        }
        set_nonblocking(file).map_err(refused)?;
    }
    Ok(file)
}
