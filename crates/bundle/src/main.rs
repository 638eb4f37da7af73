//! `cloche-bundle`: all devices of one guest in one process, a thread for each (`cloche run --devices=bundled`).

use std::process::ExitCode;

use cloche_device::Bundle;

fn main() -> ExitCode {
    let bundle = Bundle {
        name: "cloche-bundle",
        kinds: &[cloche_fs::KIND, cloche_disk::kind::KIND, cloche_rng::KIND],
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
    };
    bundle.run()
}
