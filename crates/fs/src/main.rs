//! `cloche-fs`: serves one directory to one VMM over vhost-user, then ends.

use std::io;
use std::process::ExitCode;

use cloche_device::{Device, Inherited, Program, Reconnect};
use cloche_fs::args::{Args, Cache, ORDERS, SYNTAX};
use cloche_fs::backend::Backend;
use cloche_fs::limits::raise_fd_limit;
use cloche_fs::orders::Orders;
use cloche_fs::share::{ShareConfig, ShareFs};
use cloche_fs::tree::TreeFs;

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-fs",
        syntax: SYNTAX,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
        // QEMU cannot connect to a file server again.
        reconnect: Reconnect::Exit,
    };
    program.run(Args::read, open)
}

fn open(args: Args, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    let is_writable = matches!(args.cache, Cache::Coherent) && !args.is_readonly;
    inherited.keep_reach(&args.root, is_writable)?;
    if matches!(args.cache, Cache::Coherent) {
        // The library looks up its own capabilities and its own descriptors there. In a jail nobody else is to be seen.
        inherited.keep_reach("/proc", false)?;
    }
    let fd_limit = raise_fd_limit(args.fd_limit)?;
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
