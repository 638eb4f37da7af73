//! cloche-warden: keeps all processes of a domain in one user and pid namespace that dies with its supervisor.
//!
//! The outer process makes the namespaces and waits; PID 1 in them ([`init`]) takes commands from the supervisor
//! over descriptor 3. With `--terminal` the outer process also keeps the supervisor's terminal ([`keeper`]), which it is
//! told of over descriptor 4. The messages are specified in `protocol/warden.md`.

mod errand;
mod failure;
mod group;
mod init;
mod jail;
mod keeper;
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
use crate::keeper::Keeper;
use crate::namespace::IdMaps;
use crate::socket::Socket;
use crate::sys::{Ended, Errno, Forked};

/// The descriptor of the supervisor's socket.
const SOCKET: RawFd = 3;
/// The descriptor of the keeper's socket.
const KEEPER: RawFd = 4;
/// The `id` of a FAILED that is about the warden itself.
pub const WARDEN_ID: u32 = u32::MAX;
/// Exit status when the warden itself could not do its work.
const EXIT_FAILED: u8 = 125;

fn main() -> ExitCode {
    let option = std::env::args_os().nth(1);
    if option.as_ref().is_some_and(|word| word == "--tsc-khz") {
        return print_tsc_khz();
    }
    let keeps = option.is_some_and(|word| word == "--terminal");
    let Ok((socket, keeper)) = take_sockets(keeps) else {
        let numbers = if keeps { "3 and 4" } else { "3" };
        eprintln!("cloche-warden: descriptor {numbers} must be a SOCK_SEQPACKET Unix socket");
        return ExitCode::from(EXIT_FAILED);
    };
    match run(socket, keeper) {
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

/// Closes every descriptor but the standard ones and the sockets, and takes the sockets.
fn take_sockets(keeps: bool) -> sys::Result<(Socket, Option<Keeper>)> {
    let last = if keeps { KEEPER } else { SOCKET };
    sys::close_range(last.unsigned_abs() + 1, u32::MAX, 0)?;
    let socket = Socket::new(take_socket(SOCKET)?);
    let keeper = keeps.then(|| take_socket(KEEPER)).transpose()?;
    Ok((socket, keeper.map(Keeper::new)))
}

fn take_socket(number: RawFd) -> sys::Result<OwnedFd> {
    sys::set_cloexec(number)?;
    let is_ours = sys::socket_option(number, libc::SO_TYPE)? == libc::SOCK_SEQPACKET
        && sys::socket_option(number, libc::SO_DOMAIN)? == libc::AF_UNIX;
    if !is_ours {
        return Err(Errno(libc::EPROTOTYPE));
    }
    Ok(sys::adopt_fd(number))
}

/// Starts PID 1, lets the socket go and waits. What fails before PID 1 runs is told to the supervisor.
fn run(mut socket: Socket, mut keeper: Option<Keeper>) -> Result<Ended, ()> {
    match start(&mut socket, &mut keeper) {
        Ok((pid, lifeline)) => {
            drop(socket);
            // Its end is the supervisor's, or comes with that of the other socket: so PID 1 is waited for after it.
            if let Some(keeper) = keeper {
                keeper.keep();
            }
            let ended = sys::wait(pid, 0);
            group::remove();
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
fn start(socket: &mut Socket, keeper: &mut Option<Keeper>) -> Outcome<(libc::pid_t, OwnedFd)> {
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
            // Nobody in the domain gets at the terminal: it comes over this socket, and never to here.
            drop(keeper.take());
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
