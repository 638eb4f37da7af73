//! `cloche-fs`: serves one directory to one VMM over vhost-user, then ends.

use std::process::ExitCode;

use cloche_device::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-fs",
        kind: cloche_fs::KIND,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    program.run()
}
