//! `cloche-net`: the network of one guest, handed on to whoever is at the other end of a socket.

use std::io;
use std::process::ExitCode;

use cloche_device::{Device, Inherited, Kind, Options, OptionsError, Program, Reconnect, Syntax};
use cloche_net::device::Front;
use cloche_net::frame::{Mac, Rules, DEFAULT_MTU, MOST_MTU};

const PEER: &str = "--peer-fd";

/// The network's front as a kind of device.
const KIND: Kind = Kind {
    name: "net",
    syntax: Syntax {
        values: &["--mac", "--mtu"],
        flags: &["--outward"],
        fds: &[PEER],
    },
    reconnect: Reconnect::AcceptAgain,
    read: |options| {
        let rules = read_args(options)?;
        Ok(Box::new(move |inherited| open(rules, inherited)))
    },
};

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-net",
        kind: KIND,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    program.run()
}

fn read_args(options: &Options) -> Result<Rules, OptionsError> {
    let mac = options.required("--mac", Mac::parse)?;
    let mtu = options.optional("--mtu", |text| {
        // What IPv4 asks of every link (RFC 791).
        text.parse()
            .ok()
            .filter(|mtu| (68..=MOST_MTU).contains(mtu))
    })?;
    let rules = Rules::new(mac, mtu.unwrap_or(DEFAULT_MTU));
    Ok(if options.has("--outward") {
        rules.outward()
    } else {
        rules
    })
}

fn open(rules: Rules, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    let peer = inherited.take_stream(PEER)?;
    Ok(Box::new(Front::new(rules, peer)))
}
