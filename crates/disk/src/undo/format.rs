//! The undo log's bytes (`protocol/undo.md`): what a header and a record are, read strictly.

use thiserror::Error;

use crate::crc::crc32;

/// Bytes of what is kept at a time.
pub const CLUSTER: u64 = 64 << 10;
/// Bytes of what is left out where it is all zero.
pub const PAGE: usize = 4096;
/// Bytes of the header.
pub const HEADER: u64 = 96;
/// Bytes of a record before its pages.
pub const RECORD: u64 = 16;
/// Clusters of a disk, at most (16 TiB): who keeps a log knows of each whether it was touched.
pub const MAX_CLUSTERS: u64 = 1 << 28;

const MAGIC: [u8; 8] = *b"clocheUL";
const VERSION: u32 = 1;
const SAVED: u16 = 1;
const GIVEN_UP: u16 = 2;

/// Why an undo log cannot be gone on with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// It does not begin as one.
    #[error("it is no undo log")]
    NoLog,
    /// It is one of another version.
    #[error("it is an undo log of version {0}")]
    Version(u32),
    /// It belongs to another disk.
    #[error("it is the undo log of a disk of {0} bytes")]
    OtherDisk(u64),
    /// The disk has more clusters than a log can have.
    #[error("the disk is too large for an undo log")]
    TooLarge,
    /// Its run has ended.
    #[error("it is the undo log of a run that has ended")]
    Sealed,
    /// What stands there is no record.
    #[error("there is no record at {0}")]
    NoRecord(u64),
}

/// What a log says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk when the run began.
    pub disk_bytes: u64,
    /// The first value of the chain.
    pub chain: u32,
}

impl Header {
    /// Reads the header of a log whose run has not ended.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8; HEADER as usize]) -> Result<Self, FormatError> {
        let (body, crc) = bytes.split_at(HEADER as usize - 4);
        let word = |at| u32::from_le_bytes(field(bytes, at));
        let long = |at| u64::from_le_bytes(field(bytes, at));
        if field(bytes, 0) != MAGIC || crc != crc32(0, body).to_le_bytes() {
            return Err(FormatError::NoLog);
        }
        if word(8) != VERSION {
            return Err(FormatError::Version(word(8)));
        }
        if u64::from(word(12)) != CLUSTER {
            return Err(FormatError::NoLog);
        }
        if long(64) != 0 {
            return Err(FormatError::Sealed);
        }
        let header = Header {
            disk_bytes: long(16),
            chain: crc32(0, &field::<16>(bytes, 48)),
        };
        if header.clusters() > MAX_CLUSTERS {
            return Err(FormatError::TooLarge);
        }
        Ok(header)
    }

    /// How many clusters the disk has.
    #[must_use]
    pub fn clusters(&self) -> u64 {
        self.disk_bytes.div_ceil(CLUSTER)
    }
}

/// One step of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// What a cluster held; `mask` has a bit for each page that was not all zero, and these follow.
    Saved {
        /// Which cluster of the disk.
        cluster: u32,
        /// Which of its pages follow.
        mask: u16,
        /// Their checksum.
        data: u32,
    },
    /// From here on nothing is kept: the run cannot be taken back.
    GivenUp,
}

impl Record {
    /// Bytes of its pages.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        match self {
            Record::Saved { mask, .. } => u64::from(mask.count_ones()) * PAGE as u64,
            Record::GivenUp => 0,
        }
    }

    /// Encodes it behind what has the checksum `chain`; returns the bytes and the next chain.
    #[must_use]
    pub fn encode(&self, chain: u32) -> ([u8; RECORD as usize], u32) {
        let (kind, mask, cluster, data) = match *self {
            Record::Saved {
                cluster,
                mask,
                data,
            } => (SAVED, mask, cluster, data),
            Record::GivenUp => (GIVEN_UP, 0, 0, 0),
        };
        let mut bytes = [0; RECORD as usize];
        let (body, link) = bytes.split_at_mut(12);
        body.copy_from_slice(
            &[
                u64::from(kind) | u64::from(mask) << 16 | u64::from(cluster) << 32,
                u64::from(data),
            ]
            .map(u64::to_le_bytes)
            .concat()[..12],
        );
        let next = crc32(crc32(0, &chain.to_le_bytes()), body);
        link.copy_from_slice(&next.to_le_bytes());
        (bytes, next)
    }

    /// Reads what [`Record::encode`] wrote behind the same `chain`; returns it and the next chain.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD as usize], chain: u32) -> Option<(Self, u32)> {
        let half = |at| u16::from_le_bytes(field(bytes, at));
        let word = |at| u32::from_le_bytes(field(bytes, at));
        let record = match half(0) {
            SAVED => Record::Saved {
                mask: half(2),
                cluster: word(4),
                data: word(8),
            },
            GIVEN_UP => Record::GivenUp,
            _ => return None,
        };
        // Whatever else it says would not come out again.
        let (again, next) = record.encode(chain);
        (again == *bytes).then_some((record, next))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_out_as_it_went_in_and_nowhere_else() {
        for record in [
            Record::Saved {
                cluster: 0x0102_0304,
                mask: 0x8001,
                data: 77,
            },
            Record::GivenUp,
        ] {
            let (bytes, next) = record.encode(5);
            assert_eq!(Record::decode(&bytes, 5), Some((record, next)));
            assert_eq!(Record::decode(&bytes, 6), None);
            for bit in 0..8 * bytes.len() {
                let mut wrong = bytes;
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Record::decode(&wrong, 5), None, "bit {bit}");
            }
        }
    }
}
