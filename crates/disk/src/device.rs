//! The disk as the start-up crate sees it.

use cloche_device::{Broken, Device, Progress, Vring, Written};

use crate::request::Disk;
use crate::storage::Storage;

/// Entries of the queue, at most, and what QEMU must be told: its virtio-mmio offers every guest this many, whatever its
/// device is set to, and sizes the notes on requests in flight for the device.
pub const QUEUE_SIZE: u16 = 1024;

impl<S: Storage + Send> Device for Disk<S> {
    fn queues(&self) -> usize {
        1
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.offered()
    }

    fn accept(&mut self, features: u64) {
        self.negotiate(features);
    }

    fn config(&self) -> Option<Vec<u8>> {
        Some(self.space().to_vec())
    }

    fn is_growing(&self) -> bool {
        self.grows()
    }

    fn process(&mut self, _queue: usize, vring: &mut Vring) -> Result<Progress, Broken> {
        vring.serve(|request| Written::Anywhere(self.answer(request.lent())))
    }

    fn has_inflight(&self) -> bool {
        true
    }
}
