//! The log being written: appended to, gone on with after a death of its process, given up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{FormatError, Header, Record, CLUSTER, HEADER, MAX_CLUSTERS, PAGE, RECORD};
use crate::crc::crc32;

/// Bytes that are gathered before they are written.
const GATHERED: usize = 1 << 20;

/// An open log of a run that goes on.
#[derive(Debug)]
pub struct UndoLog {
    file: File,
    end: u64,
    chain: u32,
    most_bytes: u64,
    /// A bit for each cluster: its old content is in the log, or in `gathered`.
    touched: Vec<u64>,
    gathered: Vec<u8>,
}

impl UndoLog {
    /// Goes on with a log, from what is whole of it; `None` when it was given up.
    ///
    /// A process that was killed may have left the beginning of its last record: what this was to keep had not been
    /// overwritten yet. So it is taken away.
    ///
    /// # Errors
    /// When the file is no log of this disk (which may have become larger since), or one that nobody has left so.
    pub fn open(file: File, disk_bytes: u64, most_bytes: u64) -> io::Result<Option<Self>> {
        let length = file.metadata()?.len();
        let mut bytes = [0; HEADER as usize];
        read_or(&file, &mut bytes, 0, FormatError::NoLog)?;
        let header = Header::decode(&bytes).map_err(io::Error::other)?;
        if header.disk_bytes > disk_bytes {
            return Err(io::Error::other(FormatError::OtherDisk(header.disk_bytes)));
        }
        let words = usize::try_from(MAX_CLUSTERS.min(header.clusters()).div_ceil(64));
        let mut log = UndoLog {
            file,
            end: HEADER,
            chain: header.chain,
            most_bytes,
            touched: vec![0; words.map_err(io::Error::other)?],
            gathered: Vec::new(),
        };
        while let Some((record, next)) = log.read_record(length)? {
            let Record::Saved { cluster, .. } = record else {
                return Ok(None);
            };
            let is_new = u64::from(cluster) < header.clusters() && !log.has(cluster);
            if !is_new {
                return Err(io::Error::other(FormatError::NoRecord(log.end)));
            }
            log.mark(cluster);
            log.chain = next;
            log.end += RECORD + record.data_len();
        }
        if log.end < length {
            log.file.set_len(log.end)?;
        }
        Ok(Some(log))
    }

    /// The record at the end of what is known, if there is a whole one.
    fn read_record(&self, length: u64) -> io::Result<Option<(Record, u32)>> {
        if self.end + RECORD > length {
            return Ok(None);
        }
        let wrong = FormatError::NoRecord(self.end);
        let mut bytes = [0; RECORD as usize];
        self.file.read_exact_at(&mut bytes, self.end)?;
        let Some((record, next)) = Record::decode(&bytes, self.chain) else {
            return Err(io::Error::other(wrong));
        };
        let is_whole = self.end + RECORD + record.data_len() <= length;
        Ok(is_whole.then_some((record, next)))
    }

    /// Whether a cluster's old content is kept already.
    #[must_use]
    pub fn has(&self, cluster: u32) -> bool {
        let word = self.touched.get(cluster as usize / 64);
        // A cluster that the disk has not is nobody's to keep.
        word.is_none_or(|word| word >> (cluster % 64) & 1 == 1)
    }

    fn mark(&mut self, cluster: u32) {
        if let Some(word) = self.touched.get_mut(cluster as usize / 64) {
            *word |= 1 << (cluster % 64);
        }
    }

    /// Keeps what a cluster holds: `content` is all of it, or nothing for what reads as zeros. It is in the file when
    /// [`UndoLog::settle`] has returned.
    ///
    /// # Errors
    /// When there is no room for it. The log must be given up then.
    pub fn keep(&mut self, cluster: u32, content: &[u8]) -> io::Result<()> {
        let mut mask = 0_u16;
        let mut data = 0;
        for (place, page) in content.chunks(PAGE).enumerate() {
            if !is_zero(page) {
                mask |= 1 << place;
                data = crc32(data, page);
                // The end of a disk may lie within a page.
                data = crc32(data, &ZEROS[..PAGE - page.len()]);
            }
        }
        let record = Record::Saved {
            cluster,
            mask,
            data,
        };
        let room = self.most_bytes.saturating_sub(self.end);
        let needed = self.gathered.len() as u64 + RECORD + record.data_len();
        if needed > room {
            return Err(io::Error::other(format!(
                "it would need more than {} bytes",
                self.most_bytes
            )));
        }
        let (bytes, next) = record.encode(self.chain);
        self.gathered.extend_from_slice(&bytes);
        for (place, page) in content.chunks(PAGE).enumerate() {
            if mask >> place & 1 == 1 {
                self.gathered.extend_from_slice(page);
                self.gathered.extend_from_slice(&ZEROS[..PAGE - page.len()]);
            }
        }
        self.chain = next;
        self.mark(cluster);
        if self.gathered.len() < GATHERED {
            return Ok(());
        }
        self.settle()
    }

    /// Appends what was gathered.
    ///
    /// # Errors
    /// When it cannot be written. The log must be given up then.
    pub fn settle(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.gathered, self.end)?;
        self.end += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// Makes the log one that says of itself that it was given up, and takes no room any more.
    ///
    /// # Errors
    /// When not even that can be written: then it would lie.
    pub fn give_up(&mut self) -> io::Result<()> {
        // Over the first record: at no moment does the log look whole. The chain begins there as in the header.
        let mut bytes = [0; HEADER as usize];
        let noted = self
            .file
            .read_exact_at(&mut bytes, 0)
            .and_then(|()| Header::decode(&bytes).map_err(io::Error::other))
            .and_then(|header| {
                let (record, _) = Record::GivenUp.encode(header.chain);
                self.file.write_all_at(&record, HEADER)
            });
        match noted {
            Ok(()) => {
                // Only room: the note is what counts.
                let _ = self.file.set_len(HEADER + RECORD);
                Ok(())
            }
            // What has no header is no log.
            Err(_) => self.file.set_len(0),
        }
    }
}

static ZEROS: [u8; PAGE] = [0; PAGE];

fn is_zero(page: &[u8]) -> bool {
    page == &ZEROS[..page.len()]
}

fn read_or(file: &File, into: &mut [u8], at: u64, wrong: FormatError) -> io::Result<()> {
    file.read_exact_at(into, at).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return io::Error::other(wrong);
        }
        error
    })
}

/// The clusters that a range of a disk lies in.
pub(super) fn clusters_of(offset: u64, length: u64) -> impl Iterator<Item = u32> {
    let first = offset / CLUSTER;
    let past = (offset + length).div_ceil(CLUSTER);
    // A log's disk has no more than MAX_CLUSTERS.
    (first..past).filter_map(|cluster| u32::try_from(cluster).ok())
}
