//! The byte stream to the real agent is cut and made anew while bytes flow.

mod host;

use std::os::unix::net::{UnixListener, UnixStream};

use host::Host;

/// Bytes both ways through `cat`.
const TOTAL: usize = 20_000_000;
const CUTS: usize = 100;

/// The 64-bit FNV-1a hash.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// A hundred cuts while 20 MB go through `cat` lose and double nothing.
#[test]
fn a_hundred_cuts() {
    let path = std::env::temp_dir().join(format!("cloche-agent-cuts-{}", std::process::id()));
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).expect("a listening socket");
    let connect = || UnixStream::connect(&path).expect("a connection");
    let mut host = Host::start_listening(listener, connect);
    let mut seed: u64 = 42;
    let bytes: Vec<u8> = (0..TOTAL)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_le_bytes()[7]
        })
        .collect();
    let exec = host.request(&["cat"]);
    host.exec_started(&exec);
    host.feed(exec.stdin, &bytes, true);
    for cut in 1..=CUTS {
        // Not at round places, and at any moment of the exchange.
        let goal = TOTAL / (CUTS + 1) * cut + cut * 997 % 5000;
        host.wait_for(|host| host.output[&exec.stdout].len() >= goal);
        host.write_some((cut * 7919) % 70_000);
        host.reconnect(connect());
    }
    let (end, out, err) = host.finish(&exec);
    assert_eq!((end, err.len()), ((0, 0), 0));
    assert_eq!((out.len(), checksum(&out)), (TOTAL, checksum(&bytes)));
    std::fs::remove_file(&path).ok();
}

/// A program runs on while no host is there, and everything it wrote up to its credit arrives with the next.
#[test]
fn programs_outlive_the_connection() {
    let path = std::env::temp_dir().join(format!("cloche-agent-outlive-{}", std::process::id()));
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).expect("a listening socket");
    let connect = || UnixStream::connect(&path).expect("a connection");
    let mut host = Host::start_listening(listener, connect);
    let exec = host.shell("read x; echo $x; exit 6");
    host.exec_started(&exec);
    host.feed(exec.stdin, b"word\n", true);
    host.wait_for(|host| host.mux.room(exec.stdin) > 0);
    host.write_all();
    // Whatever of this had arrived: the next connection takes it up.
    host.reconnect(connect());
    let (end, out, _) = host.finish(&exec);
    assert_eq!((end, out), ((0, 6), b"word\n".to_vec()));
    std::fs::remove_file(&path).ok();
}
