//! From fork to exec of one process: descriptors, namespaces, root, confinement, in the order that lets each step work.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cloche_proto::warden::{jail_flags, Jail, Spawn, FD_UNNAMED};

use crate::failure::{Failure, Outcome, Step};
use crate::jail;
use crate::namespace;
use crate::root;
use crate::sys::{self, Errno};

/// Descriptor numbers of a program stay below this. Well below 1024, the usual limit of descriptors.
const FD_LIMIT: i32 = 256;
const EXIT_NOT_STARTED: i32 = 127;

/// Becomes the program, or tells `report` why not.
pub fn run(spawn: &Spawn, fds: Vec<OwnedFd>, null: &OwnedFd, report: &OwnedFd) -> ! {
    // If the report cannot be written, PID 1 is gone, and so is this process in a moment.
    let Ok(report) = move_away(report, spawn) else {
        sys::exit_now(EXIT_NOT_STARTED)
    };
    match start(spawn, fds, null) {
        Ok(never) => match never {},
        Err(failure) => {
            let _ = sys::write_all(report.as_fd(), &failure.to_bytes());
        }
    }
    sys::exit_now(EXIT_NOT_STARTED)
}

/// A copy of a descriptor where no number of the program's can overwrite it: right above those, for a caller's limit of
/// descriptors may be low.
fn move_away(fd: &OwnedFd, spawn: &Spawn) -> sys::Result<OwnedFd> {
    let named = spawn.fds.iter().filter_map(|n| i32::try_from(*n).ok());
    let highest = named.filter(|n| *n < FD_LIMIT).max().unwrap_or(0);
    sys::dup_above(fd.as_fd(), highest.max(libc::STDERR_FILENO) + 1)
}

fn start(
    spawn: &Spawn,
    mut fds: Vec<OwnedFd>,
    null: &OwnedFd,
) -> Outcome<core::convert::Infallible> {
    let jail = &spawn.jail;
    sys::set_process_name(&spawn.name);
    sys::reset_signals();
    let argv = c_strings(&spawn.argv).step("argv")?;
    let env = c_strings(&spawn.env).step("env")?;
    let program = if spawn.exe_fd { fds.pop() } else { None };
    // Before the host's /proc is out of sight.
    let own_process = namespace::process_directory(c"/proc/self")?;
    let own_process = move_away(&own_process, spawn).step("descriptors")?;

    if jail.flags & jail_flags::SETSID != 0 {
        sys::setsid().step("setsid")?;
    }
    enter_namespaces(jail)?;
    if jail.flags & jail_flags::KEEP_ROOT == 0 {
        root::build(jail, &fds, &own_process)?;
    }
    change_directory(jail)?;
    let program = place_descriptors(spawn, fds, null, program)?;
    jail::confine(jail, &own_process)?;

    let what = [
        b"exec ".as_slice(),
        spawn.argv.first().map_or(b"".as_slice(), Vec::as_slice),
    ]
    .concat();
    let errno = match (&program, argv.first()) {
        (Some(program), _) => sys::exec_file(program.as_raw_fd(), &argv, &env),
        (None, Some(path)) => sys::exec_path(path, &argv, &env),
        (None, None) => Errno(libc::EINVAL),
    };
    Err(Failure::new(what, errno))
}

fn c_strings(strings: &[Vec<u8>]) -> sys::Result<Vec<CString>> {
    strings.iter().map(|bytes| sys::c_string(bytes)).collect()
}

/// Makes the jail's namespaces but for pid, which the fork made, and user, which comes last.
fn enter_namespaces(jail: &Jail) -> Outcome {
    let done_elsewhere = libc::CLONE_NEWPID | libc::CLONE_NEWUSER;
    let namespaces = sys::flags(jail.namespaces) & !done_elsewhere;
    if jail.flags & jail_flags::KEEP_ROOT == 0 && namespaces & libc::CLONE_NEWNS == 0 {
        return Err(Failure::new(
            "a root needs a mount namespace",
            Errno(libc::EINVAL),
        ));
    }
    sys::unshare(namespaces).step("make namespaces")?;
    if namespaces & libc::CLONE_NEWNS != 0 {
        sys::set_propagation(libc::MS_PRIVATE).step("make mounts private")?;
    }
    if jail.hostname.is_empty() {
        return Ok(());
    }
    if namespaces & libc::CLONE_NEWUTS == 0 {
        return Err(Failure::new(
            "a host name needs a uts namespace",
            Errno(libc::EINVAL),
        ));
    }
    sys::set_hostname(&jail.hostname).step("hostname")
}

fn change_directory(jail: &Jail) -> Outcome {
    let path = if jail.cwd.is_empty() {
        b"/"
    } else {
        jail.cwd.as_slice()
    };
    let what = [b"cwd ", path].concat();
    sys::chdir(&sys::c_string(path).step(what.as_slice())?).step(what)
}

/// Puts every descriptor at its number, /dev/null at those of the standard ones that are not named, and leaves nothing
/// else for the program to inherit. Gives back the program's descriptor.
fn place_descriptors(
    spawn: &Spawn,
    fds: Vec<OwnedFd>,
    null: &OwnedFd,
    program: Option<OwnedFd>,
) -> Outcome<Option<OwnedFd>> {
    // First out of the way of all numbers asked for, then to them: nothing still needed is overwritten.
    let program = program
        .as_ref()
        .map(|fd| move_away(fd, spawn))
        .transpose()
        .step("descriptors")?;
    let mut places: Vec<(i32, OwnedFd)> = Vec::new();
    for (number, fd) in spawn
        .fds
        .iter()
        .zip(&fds)
        .filter(|(number, _)| **number != FD_UNNAMED)
    {
        let number = i32::try_from(*number).unwrap_or(FD_LIMIT);
        if number >= FD_LIMIT || places.iter().any(|(taken, _)| *taken == number) {
            return Err(Failure::new(
                format!("descriptor {number}"),
                Errno(libc::EINVAL),
            ));
        }
        places.push((number, move_away(fd, spawn).step("descriptors")?));
    }
    for number in 0..3 {
        if !places.iter().any(|(taken, _)| *taken == number) {
            places.push((number, move_away(null, spawn).step("descriptors")?));
        }
    }
    drop(fds);
    sys::close_range(0, u32::MAX, libc::CLOSE_RANGE_CLOEXEC).step("descriptors")?;
    for (number, fd) in &places {
        sys::dup_to(fd.as_fd(), *number).step("descriptors")?;
    }
    Ok(program)
}
