//! A disk that can be taken back to what it was when its run began.
//!
//! Before a cluster is changed for the first time, what it held is appended to a log. Only the order of the two
//! counts, and only within this kernel: a process that is killed leaves both in the page cache. Nothing is synced for the
//! log's sake; after a loss of power whoever reads it finds out by its checksums whether all of it is there.

mod format;
mod journal;

use std::fs::File;
use std::io;

use cloche_device::Slice;

pub use self::format::{FormatError, Header, Record, CLUSTER, HEADER, MAX_CLUSTERS, PAGE, RECORD};
pub use self::journal::UndoLog;

use self::journal::clusters_of;
use crate::bytes::total_len;
use crate::raw::RawFile;
use crate::storage::Storage;

/// A raw file and the log of what it held.
#[derive(Debug)]
pub struct Revertible {
    disk: RawFile,
    log: Option<UndoLog>,
    /// It has to be given up, and that could not be noted yet.
    is_stuck: bool,
    cluster: Vec<u8>,
}

impl Revertible {
    /// Takes a disk and the file of its log, which has a header or more.
    ///
    /// # Errors
    /// See [`UndoLog::open`].
    pub fn new(disk: RawFile, log: File, most_bytes: u64) -> io::Result<Self> {
        Ok(Revertible {
            log: UndoLog::open(log, disk.size_bytes(), most_bytes)?,
            disk,
            is_stuck: false,
            cluster: vec![0; CLUSTER as usize],
        })
    }

    /// Keeps what all clusters of a range hold, before they are written to.
    fn keep_all(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let mut data_from = 0;
        for cluster in clusters_of(offset, length) {
            self.keep(cluster, &mut data_from)?;
        }
        self.settle()
    }

    /// Keeps what those clusters of a range hold that are no holes: a hole that becomes zeros does not change.
    fn keep_data(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while self.log.is_some() && !self.is_stuck {
            let mut data_from = self.disk.next_data(at)?;
            if data_from >= end {
                break;
            }
            let cluster = data_from / CLUSTER;
            at = (cluster + 1) * CLUSTER;
            self.keep(
                u32::try_from(cluster).map_err(io::Error::other)?,
                &mut data_from,
            )?;
        }
        self.settle()
    }

    /// Keeps what one cluster holds, unless it is kept already. Before `data_from` there are only holes.
    fn keep(&mut self, cluster: u32, data_from: &mut u64) -> io::Result<()> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        if self.is_stuck || log.has(cluster) {
            return Ok(());
        }
        let begin = u64::from(cluster) * CLUSTER;
        let end = (begin + CLUSTER).min(self.disk.size_bytes());
        if *data_from < end {
            *data_from = self.disk.next_data(begin)?;
        }
        let content = self.cluster.get_mut(..(end - begin) as usize);
        let content = content.unwrap_or_default();
        let kept = if *data_from >= end {
            log.keep(cluster, &[])
        } else {
            self.disk.read_plain(begin, content)?;
            log.keep(cluster, content)
        };
        self.or_give_up(kept)
    }

    /// The end of what comes before a change.
    fn settle(&mut self) -> io::Result<()> {
        if self.is_stuck {
            return self.give_up();
        }
        let settled = self.log.as_mut().map_or(Ok(()), UndoLog::settle);
        self.or_give_up(settled)
    }

    /// The guest's disk goes before the way back: what cannot be kept is given up, and the guest does not notice.
    fn or_give_up(&mut self, kept: io::Result<()>) -> io::Result<()> {
        let Err(error) = kept else {
            return Ok(());
        };
        log::warn!("the undo log is given up: {error}");
        self.is_stuck = true;
        self.give_up()
    }

    /// Nothing may change while a log stands there that does not know of it.
    fn give_up(&mut self) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.give_up()?;
        }
        self.log = None;
        self.is_stuck = false;
        Ok(())
    }
}

impl Storage for Revertible {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn read(&mut self, offset: u64, into: &[Slice<'_>]) -> io::Result<()> {
        self.disk.read(offset, into)
    }

    fn write(&mut self, offset: u64, from: &[Slice<'_>]) -> io::Result<()> {
        self.keep_all(offset, total_len(from))?;
        self.disk.write(offset, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.keep_data(offset, length)?;
        self.disk.discard(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        self.keep_data(offset, length)?;
        self.disk.write_zeroes(offset, length, may_unmap)
    }
}
