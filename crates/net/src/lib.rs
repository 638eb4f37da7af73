//! The network front of one guest: between the guest's virtio network device (virtio 1.2, 5.1) and a byte stream that
//! carries frames, it looks at every frame and hands on those that are in order.

pub mod device;
pub mod frame;
pub mod stream;
