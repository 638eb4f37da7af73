//! Messages from the supervisor to the keeper of its terminal (`protocol/warden.md`). One message is one packet.

use crate::codec::{CodecError, Reader, Result, Writer};

/// Largest packet in bytes.
pub const MAX_PACKET: usize = 128;
/// Size of [`Mode`] in bytes.
const MODE_SIZE: usize = 36;
const RAW: u8 = 1;
const RESTORED: u8 = 2;

/// A terminal's settings: the kernel's `struct termios` of x86-64, as TCGETS gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub [u8; MODE_SIZE]);

impl Mode {
    /// Whether everything is the same that a program sets to read keys: the flags of input, output and local modes, the
    /// line discipline and the special characters. Control flags are left out: drivers correct them, and a mode that
    /// was set need not be the one that is read.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let [a, b] = [&self.0, &other.0];
        a[..8] == b[..8] && a[12..] == b[12..]
    }
}

/// A message to the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToKeeper {
    /// The terminal, whose descriptor comes with the packet, is about to be made raw.
    Raw {
        /// What it was, and what is to be set when the supervisor dies.
        saved: Mode,
        /// What it will be.
        raw: Mode,
    },
    /// The terminal is as it was: nothing is to be done any more.
    Restored,
}

impl ToKeeper {
    /// Decodes one packet.
    ///
    /// # Errors
    /// [`CodecError`] when the packet is not exactly one well-formed message.
    pub fn decode(packet: &[u8]) -> Result<Self> {
        let mut r = Reader::new(packet);
        let message = match r.u8()? {
            RAW => Self::Raw {
                saved: Mode(r.array()?),
                raw: Mode(r.array()?),
            },
            RESTORED => Self::Restored,
            other => {
                return Err(CodecError::Unknown {
                    what: "message type",
                    value: u64::from(other),
                })
            }
        };
        r.finish()?;
        Ok(message)
    }

    /// Encodes one packet.
    ///
    /// # Errors
    /// None happen: a message is never too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new(MAX_PACKET);
        match self {
            Self::Raw { saved, raw } => w.u8(RAW).raw(&saved.0).raw(&raw.0),
            Self::Restored => w.u8(RESTORED),
        };
        w.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Control flags may differ, every other byte counts.
    #[test]
    fn alike_modes() {
        let mode = Mode([7; MODE_SIZE]);
        for at in 0..MODE_SIZE {
            let mut other = mode;
            other.0[at] ^= 1;
            assert_eq!(mode.is_like(&other), (8..12).contains(&at), "byte {at}");
        }
    }
}
