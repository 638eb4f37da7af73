//! `cloche-rng`: gives one guest random numbers over vhost-user.

use std::process::ExitCode;

use cloche_device::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-rng",
        kind: cloche_rng::KIND,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    program.run()
}
