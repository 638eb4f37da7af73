//! The file server of a guest: the system tree and the shares, over vhost-user.
//!
//! One process serves one tree to one VMM and ends when the VMM does. It is started inside its jail (the root it serves
//! belongs to a mount namespace of its own) and confines nothing itself. The wire side (FUSE, descriptor chains) and the
//! pass-through file system are the virtiofsd crate's; what is served how is decided here.

pub mod args;
pub mod backend;
pub mod budget;
pub mod ids;
pub mod limits;
pub mod nodes;
pub mod orders;
pub mod recent;
pub mod request;
pub mod share;
mod share_ops;
pub mod stat;
pub mod tree;
pub mod tree_state;
