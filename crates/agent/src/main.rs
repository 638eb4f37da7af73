//! The agent of a cloche guest: its first process, which starts programs for the host and carries their bytes
//! (`protocol/README.md`).
//!
//! As process 1 of an initramfs it mounts the basic file systems and serves the first virtio port. With `--fd N`
//! it serves the connected socket N, with `--listen-fd N` the connections of a listening socket, one after the other.
#![no_main]

mod agent;
mod boot;
mod cgroup;
mod control;
mod freeze;
mod job;
mod log;
mod mounting;
mod port;
mod setup;
mod spawn;
mod sys;
mod tty;
mod watch;

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::AsFd;

use libc::{c_char, c_int};

use agent::Agent;
use port::Port;

const USAGE: &str = "usage: cloche-agent --version | --fd N | --listen-fd N\n";
/// Status when the agent is called wrongly or cannot start.
const FAILURE: c_int = 125;

/// What the command line asks for.
enum Mode {
    Version,
    Connected(c_int),
    Listening(c_int),
    Guest,
    Wrong,
}

/// Rust's own start-up is left out: it would end the first process of a guest without a console, whose standard
/// descriptors are closed.
///
/// # Safety
/// The C library calls this, with `argc` C strings that live as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let words: Vec<&[u8]> = (0..count)
        // SAFETY: see above.
        .map(|index| unsafe { CStr::from_ptr(*argv.add(index)) }.to_bytes())
        .collect();
    match mode(words.get(1..).unwrap_or_default()) {
        Mode::Version => {
            drop(writeln!(std::io::stdout(), "{}", env!("CARGO_PKG_VERSION")));
            0
        }
        Mode::Connected(fd) => serve_host_process(fd, false),
        Mode::Listening(fd) => serve_host_process(fd, true),
        Mode::Guest => serve_guest(),
        Mode::Wrong => {
            drop(std::io::stderr().write_all(USAGE.as_bytes()));
            FAILURE
        }
    }
}

fn mode(words: &[&[u8]]) -> Mode {
    let number = |word: &[u8]| -> Option<c_int> {
        let number = std::str::from_utf8(word).ok()?.parse().ok()?;
        (number >= 0).then_some(number)
    };
    match words {
        [b"--version"] => Mode::Version,
        [b"--fd", fd] => number(fd).map_or(Mode::Wrong, Mode::Connected),
        [b"--listen-fd", fd] => number(fd).map_or(Mode::Wrong, Mode::Listening),
        // A kernel hands its first process the words of its command line that it does not know itself.
        _ if sys::process_id() == 1 => Mode::Guest,
        _ => Mode::Wrong,
    }
}

/// In a container, or under test: the peer is a process of this machine.
fn serve_host_process(fd: c_int, listens: bool) -> c_int {
    sys::block_signals();
    sys::reset_signal_actions();
    // A program of the same user must not be able to look into the agent.
    sys::prctl(libc::PR_SET_DUMPABLE, 0);
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    let socket = match sys::duplicate(fd) {
        Ok(socket) => socket,
        Err(errno) => {
            log::note(&format!("descriptor {fd}: error {}", errno.0));
            return FAILURE;
        }
    };
    sys::close_range(3, c_int::MAX, true);
    // Only the copy is kept, so that the peer sees the end of this process.
    if fd > 2 {
        sys::close_range(fd, fd, false);
    } else if let Ok(null) = sys::open(c"/dev/null", libc::O_RDWR, 0) {
        sys::replace(null.as_fd(), fd);
    }
    let port = if listens {
        Port::listening(socket)
    } else {
        Port::connected(socket, true)
    };
    let own_session = !sys::lead_session();
    match Agent::new(port, own_session, false) {
        Ok(mut agent) => agent.run(),
        Err(errno) => {
            log::note(&format!("start: error {}", errno.0));
            FAILURE
        }
    }
}

/// As a guest's first process. Never returns: the machine ends instead.
fn serve_guest() -> c_int {
    sys::block_signals();
    log::use_kernel_log();
    std::panic::set_hook(Box::new(|info| log::note(&info.to_string())));
    boot::prepare();
    sys::lead_session();
    let served = boot::do_first_steps()
        .and_then(|()| boot::open_port())
        .and_then(|port| Agent::new(Port::connected(port, false), false, true))
        .map(|mut agent| agent.run());
    if let Err(errno) = served {
        log::note(&format!("start: error {}", errno.0));
    }
    sys::sync();
    sys::reboot();
    loop {
        sys::pause();
    }
}
