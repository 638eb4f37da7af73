//! What goes back to the supervisor when a step does not succeed.

use cloche_proto::warden::ToSupervisor;

use crate::sys::Errno;

/// Longest name of a step that is sent, in bytes. With the error number it stays below `PIPE_BUF`.
const WHAT_LIMIT: usize = 2048;

/// A step that failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step, like `bind /usr to /usr`.
    pub what: Vec<u8>,
    /// The kernel's reason.
    pub errno: Errno,
}

/// Result of a step.
pub type Outcome<T = ()> = core::result::Result<T, Failure>;

impl Failure {
    /// A failure of the step `what`.
    pub fn new(what: impl Into<Vec<u8>>, errno: Errno) -> Self {
        let mut what = what.into();
        what.truncate(WHAT_LIMIT);
        Self { what, errno }
    }

    /// As bytes for the pipe between a process that is being started and PID 1.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.errno.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.what);
        bytes
    }

    /// Reads what [`Failure::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let errno = bytes
            .first_chunk()
            .map_or(libc::EIO, |head| i32::from_le_bytes(*head));
        Self::new(bytes.get(4..).unwrap_or_default(), Errno(errno))
    }

    /// As the message to the supervisor.
    pub fn message(self, id: u32) -> ToSupervisor {
        ToSupervisor::Failed {
            id,
            errno: self.errno.0.unsigned_abs(),
            what: self.what,
        }
    }

    /// As the answer to a request to change a tree; an error number of 0 says that it was done.
    pub fn done(self, request: u32) -> ToSupervisor {
        ToSupervisor::Done {
            request,
            errno: self.errno.0.unsigned_abs(),
            what: self.what,
        }
    }
}

/// Names the step a system call belongs to.
pub trait Step<T> {
    /// Turns an error number into a [`Failure`] of the step `what`.
    fn step<W: Into<Vec<u8>>>(self, what: W) -> Outcome<T>;
}

impl<T> Step<T> for crate::sys::Result<T> {
    fn step<W: Into<Vec<u8>>>(self, what: W) -> Outcome<T> {
        self.map_err(|errno| Failure::new(what, errno))
    }
}
