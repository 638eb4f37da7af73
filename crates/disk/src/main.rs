//! `cloche-disk`: the disk of one guest, kept in a file that was opened before.

use std::process::ExitCode;

use cloche_device::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-disk",
        kind: cloche_disk::kind::KIND,
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    program.run()
}
