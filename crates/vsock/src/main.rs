//! `cloche-vsock`: sockets between one guest and programs of the host.

use std::io;
use std::process::ExitCode;

use cloche_device::{Device, Inherited, Kind, Program, Reconnect, Syntax};
use cloche_vsock::device::Sockets;
use cloche_vsock::outside::Outside;

const LISTENER: &str = "--listen-fd";
const SUPERVISOR: &str = "--ask-fd";
const CID: &str = "--cid";
/// The first address that is a guest's (virtio 1.2, 5.10.4).
const FIRST_CID: u64 = 3;

const KIND: Kind = Kind {
    name: "vsock",
    syntax: Syntax {
        values: &[CID],
        flags: &[],
        fds: &[LISTENER, SUPERVISOR],
    },
    // QEMU does not connect again.
    reconnect: Reconnect::Exit,
    read: |options| {
        let cid = options.required(CID, |text| {
            // Addresses have 32 bits.
            let cid = text.parse::<u32>().ok().filter(|cid| *cid != u32::MAX);
            cid.map(u64::from).filter(|cid| *cid >= FIRST_CID)
        })?;
        Ok(Box::new(move |inherited| open(cid, inherited)))
    },
};

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-vsock",
        kind: KIND,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    program.run()
}

fn open(cid: u64, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    let listener = inherited.take_listener(LISTENER)?;
    let supervisor = inherited.take_stream(SUPERVISOR)?;
    let supervisor =
        supervisor.ok_or_else(|| io::Error::other(format!("{SUPERVISOR} is required")))?;
    let outside = Outside::new(listener, supervisor)?;
    Ok(Box::new(Sockets::new(cid, outside)))
}
