//! Sockets between a guest and programs of the host (virtio 1.2, 5.10): streams that the guest knows by a port, and the host by
//! a Unix socket.
//!
//! A program of the host connects to one socket and says `CONNECT port`; what a guest connects to is found by the supervisor,
//! which alone can name sockets of the host ([`outside`]). Every stream has a window in both directions, so the
//! process keeps a bounded number of bytes of a bounded number of streams, whatever either side does.

pub mod connection;
pub mod device;
mod greeting;
pub mod outside;
pub mod packet;
mod table;
