//! cloche-warden: keeps all processes of a domain in one user and pid namespace that dies with its supervisor.
//!
//! The outer process makes the namespaces and waits; PID 1 in them ([`init`]) takes commands from the supervisor
//! over descriptor 3. The messages are specified in `protocol/warden.md`.

mod failure;
mod init;
mod jail;
mod keys;
mod namespace;
mod root;
mod socket;
mod spawn;
mod sys;
mod tsc;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process::ExitCode;

use crate::failure::{Failure, Outcome, Step};
use crate::init::Lifelines;
use crate::namespace::IdMaps;
use crate::socket::Socket;
use crate::sys::{Ended, Errno, Forked};

/// The descriptor of the supervisor's socket.
const SOCKET: RawFd = 3;
/// The `id` of a FAILED that is about the warden itself.
pub const WARDEN_ID: u32 = u32::MAX;
/// Exit status when the warden itself could not do its work.
const EXIT_FAILED: u8 = 125;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "--tsc-khz")
    {
        return print_tsc_khz();
    }
    let Ok(socket) = take_socket() else {
        eprintln!("cloche-warden: descriptor 3 must be a SOCK_SEQPACKET Unix socket");
        return ExitCode::from(EXIT_FAILED);
    };
    match run(socket) {
        Ok(Ended::Status(status)) => ExitCode::from(u8::try_from(status).unwrap_or(EXIT_FAILED)),
        Ok(Ended::Signal(signo)) => {
            ExitCode::from(u8::try_from(128 + signo).unwrap_or(EXIT_FAILED))
        }
        Err(()) => ExitCode::from(EXIT_FAILED),
    }
}

fn print_tsc_khz() -> ExitCode {
    match tsc::measure_khz() {
        Some(khz) => {
            println!("{khz}");
            ExitCode::SUCCESS
        }
        None => ExitCode::from(EXIT_FAILED),
    }
}

/// Closes every descriptor but the standard ones and the socket, and takes the socket.
fn take_socket() -> sys::Result<Socket> {
    let first = SOCKET.unsigned_abs() + 1;
    sys::close_range(first, u32::MAX, 0)?;
    sys::set_cloexec(SOCKET)?;
    let is_ours = sys::socket_option(SOCKET, libc::SO_TYPE)? == libc::SOCK_SEQPACKET
        && sys::socket_option(SOCKET, libc::SO_DOMAIN)? == libc::AF_UNIX;
    if !is_ours {
        return Err(Errno(libc::EPROTOTYPE));
    }
    Ok(Socket::new(sys::adopt_fd(SOCKET)))
}

/// Starts PID 1, lets the socket go and waits. What fails before PID 1 runs is told to the supervisor.
fn run(mut socket: Socket) -> Result<Ended, ()> {
    match start(&mut socket) {
        Ok((pid, lifeline)) => {
            drop(socket);
            let ended = sys::wait(pid, 0);
            drop(lifeline);
            ended.ok().flatten().map(|(_, ended)| ended).ok_or(())
        }
        Err(failure) => {
            // Without a supervisor there is nobody to tell, and the exit status says it, too.
            let _ = socket.send(&failure.message(WARDEN_ID), None);
            Err(())
        }
    }
}

/// Forks PID 1 into the new namespaces. The parent gets its process id and the writing end of its lifeline.
fn start(socket: &mut Socket) -> Outcome<(libc::pid_t, OwnedFd)> {
    sys::reset_signals();
    sys::chdir(c"/").step("chdir /")?;
    if !sys::is_session_leader() {
        sys::setsid().step("setsid")?;
    }
    let maps = if sys::ids().0 == 0 {
        IdMaps::all()?
    } else {
        IdMaps::own()
    };
    let (reader, writer) = sys::pipe().step("pipe")?;
    let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    match sys::fork(namespaces, false).step("make a user, pid and mount namespace")? {
        Forked::Child => {
            drop(writer);
            init::run(socket, &Lifelines::new(reader))
        }
        Forked::Parent(pid, _) => {
            release(pid, &maps, &writer).inspect_err(|_| {
                // It is gone already when this fails.
                let _ = sys::kill(pid, libc::SIGKILL);
            })?;
            Ok((pid, writer))
        }
    }
}

/// Gives PID 1 its ids, which only a process outside can do, and lets it go on.
fn release(pid: libc::pid_t, maps: &IdMaps, lifeline: &OwnedFd) -> Outcome {
    let name = sys::c_string(format!("/proc/{pid}").as_bytes()).step("proc")?;
    maps.write(&namespace::process_directory(&name)?)?;
    sys::write_all(lifeline.as_fd(), &[init::GO])
        .map_err(|errno| Failure::new("start PID 1", errno))
}
