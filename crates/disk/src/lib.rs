//! A disk for a guest: virtio-blk over vhost-user, on a file that was opened by whoever started the process.
//!
//! Requests ([`request`]) and the files behind them ([`storage`]) know nothing of sockets, so that they can be tested, and
//! attacked, without a machine. What a guest writes into its ring costs a
//! bounded amount of memory and time, and panics nothing.

pub mod bytes;
pub mod config;
pub mod crc;
pub mod device;
pub mod kind;
pub mod qcow2;
pub mod raw;
pub mod request;
pub mod storage;
pub mod undo;
