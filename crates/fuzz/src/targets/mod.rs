//! The targets.

mod agent;
mod disk;
mod files;
mod frame;
mod frontend;
mod message;
mod mux;
mod net;
mod policy;
pub mod qcow2;
mod rng;
mod undo;
mod vsock;
mod warden;

use crate::Target;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// All of them.
pub const TARGETS: &[Target] = &[
    target("frame", frame::run, 16 * KIB, MIB, 3000),
    target("message", message::run, 16 * KIB, MIB, 3000),
    target("mux", mux::run, 4 * KIB, 16 * MIB, 500),
    target("agent", agent::run, 16 * KIB, 8 * MIB, 500),
    target("warden", warden::run, 16 * KIB, MIB, 3000),
    target("policy", policy::run, 16 * KIB, 16 * MIB, 300),
    target("rng", rng::run, 64 * KIB, MIB, 1000),
    target("disk", disk::run, 64 * KIB, MIB, 1000),
    target("net", net::run, 80 * KIB, MIB, 500),
    target("vsock", vsock::run, 16 * KIB, 8 * MIB, 300),
    target("qcow2", qcow2::run, 64 * KIB, 64 * MIB, 1000),
    target("undo", undo::run, 256 * KIB, MIB, 1000),
    target("tree", files::run_tree, 4 * KIB, 4 * MIB, 500),
    target("share", files::run_share, 4 * KIB, 8 * MIB, 300),
    target("frontend", frontend::run, 4 * KIB, 4 * MIB, 500),
];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    max_input: usize,
    max_heap: usize,
    smoke_runs: usize,
) -> Target {
    Target {
        name,
        run,
        max_input,
        max_heap,
        smoke_runs,
    }
}
