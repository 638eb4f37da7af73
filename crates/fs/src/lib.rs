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
mod share_state;
pub mod stat;
pub mod tree;
pub mod tree_state;

use std::io;

use cloche_device::{Device, Inherited, Kind, Reconnect};

use args::{Args, Cache, ORDERS, SYNTAX};
use backend::Backend;
use orders::Orders;
use share::{ShareConfig, ShareFs};
use tree::TreeFs;

/// The file server as a kind of device.
pub const KIND: Kind = Kind {
    name: "fs",
    syntax: SYNTAX,
    // QEMU cannot connect to a file server again.
    reconnect: Reconnect::Exit,
    read: |options| {
        let args = Args::read(options)?;
        Ok(Box::new(|inherited| open(args, inherited)))
    },
};

fn open(args: Args, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    let is_writable = matches!(args.cache, Cache::Coherent) && !args.is_readonly;
    inherited.keep_reach(&args.root, is_writable)?;
    if matches!(args.cache, Cache::Coherent) {
        // The library looks up its own capabilities and its own descriptors there. In a jail nobody else is to be seen.
        inherited.keep_reach("/proc", false)?;
    }
    let fd_limit = limits::raise_fd_limit(args.fd_limit)?;
    Ok(match args.cache {
        Cache::Forever => {
            let files = TreeFs::new(&args.root, args.ids, fd_limit)?;
            Box::new(Backend::new(files, args.tag))
        }
        Cache::Coherent => {
            let files = ShareFs::new(&ShareConfig {
                root: args.root,
                ids: args.ids,
                fd_limit,
                is_readonly: args.is_readonly,
            })?;
            let orders = inherited.take(ORDERS);
            let orders = orders.map(|socket| Orders::new(socket, files.clone()));
            Box::new(Backend::new(files, args.tag).with_orders(orders))
        }
    })
}
