//! `cloche-rng`: gives one guest random numbers over vhost-user, then ends.

use std::process::ExitCode;

use cloche_device::{Device, Program, Reconnect, Syntax};
use cloche_rng::Entropy;

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-rng",
        syntax: Syntax {
            values: &[],
            flags: &[],
            fds: &[],
        },
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
        // QEMU does not connect again.
        reconnect: Reconnect::Exit,
    };
    program.run(
        |_| Ok(()),
        |(), _| Ok(Box::new(Entropy::new()) as Box<dyn Device>),
    )
}
