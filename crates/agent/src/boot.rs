//! The first steps of a guest: file systems, modules, and the way to the host.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cloche_proto::message::ToAgent;

use crate::log;
use crate::setup;
use crate::sys::{self, c_string, Errno, Result};
use crate::watch::Watch;

/// Port 1 of the first device with ports.
const PORT: &CStr = c"/dev/vport0p1";
const MODULES: &str = "/modules";
/// A SETUP message of the host's, in the initramfs of a machine that is to become a template.
const SETUP: &str = "/setup";
/// How long one wait for the port lasts before the place is looked at again, in case an event was lost.
const PORT_WAIT_MS: i32 = 2000;
const SECOND_NS: u64 = 1_000_000_000;

struct Mount {
    directory: &'static str,
    target: &'static CStr,
    fstype: &'static CStr,
    flags: u64,
    data: &'static CStr,
}

/// Names that programs expect beside the devices.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const QUIET: u64 = libc::MS_NOSUID | libc::MS_NODEV;

const MOUNTS: [Mount; 6] = [
    Mount {
        directory: "/dev",
        target: c"/dev",
        fstype: c"devtmpfs",
        flags: libc::MS_NOSUID,
        data: c"mode=755",
    },
    Mount {
        directory: "/proc",
        target: c"/proc",
        fstype: c"proc",
        flags: QUIET | libc::MS_NOEXEC,
        data: c"",
    },
    Mount {
        directory: "/sys",
        target: c"/sys",
        fstype: c"sysfs",
        flags: QUIET | libc::MS_NOEXEC,
        data: c"",
    },
    Mount {
        directory: "/dev/pts",
        target: c"/dev/pts",
        fstype: c"devpts",
        flags: libc::MS_NOSUID | libc::MS_NOEXEC,
        data: c"gid=5,mode=620,ptmxmode=666",
    },
    Mount {
        directory: "/dev/shm",
        target: c"/dev/shm",
        fstype: c"tmpfs",
        flags: QUIET,
        data: c"mode=1777",
    },
    Mount {
        directory: "/run",
        target: c"/run",
        fstype: c"tmpfs",
        flags: QUIET,
        data: c"mode=755",
    },
];

/// Mounts what every program expects, and loads the modules the initramfs brought.
pub fn prepare() {
    for mount in &MOUNTS {
        // There already, or else the mount fails with the reason.
        drop(fs::create_dir(mount.directory));
        let done = sys::mount(
            mount.fstype,
            mount.target,
            mount.fstype,
            mount.flags,
            mount.data,
        );
        if let Err(Errno(errno)) = done {
            if errno != libc::EBUSY {
                log::note(&format!("mount {}: error {errno}", mount.directory));
            }
        }
    }
    for (target, link) in LINKS {
        // There already, or /dev could not be mounted, which was told above.
        drop(symlink(target, link));
    }
    occupy_standard_streams();
    load_modules();
}

/// Without a console a kernel starts its first process with no descriptors at all; then 0 to 2 would be given to files.
fn occupy_standard_streams() {
    while let Ok(fd) = sys::open(c"/dev/null", libc::O_RDWR, 0) {
        use std::os::fd::{AsRawFd, IntoRawFd};
        if fd.as_raw_fd() > 2 {
            break;
        }
        let _stays_open = fd.into_raw_fd();
    }
}

/// Loads the modules named in [`MODULES`], one a line (path, then parameters), in their order; and frees their memory.
fn load_modules() {
    let Ok(list) = fs::read(MODULES) else { return };
    for line in list.split(|byte| *byte == b'\n') {
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let path = words.next().unwrap_or_default();
        if path.is_empty() {
            continue;
        }
        if let Err(Errno(errno)) = load_module(path, words.next().unwrap_or_default()) {
            let name = String::from_utf8_lossy(path);
            log::note(&format!("module {name}: error {errno}"));
        }
        drop(fs::remove_file(OsStr::from_bytes(path)));
    }
}

fn load_module(path: &[u8], parameters: &[u8]) -> Result<()> {
    let file = sys::open(&c_string(path)?, libc::O_RDONLY, 0)?;
    let compressed = !path.ends_with(b".ko");
    sys::load_module(file.as_fd(), &c_string(parameters)?, compressed)
}

/// Does what [`SETUP`] asks for, if it is there.
///
/// # Errors
/// When it cannot be read or is not done; what it was is in the log.
pub fn do_first_steps() -> Result<()> {
    let message = match fs::read(SETUP) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    fs::remove_file(SETUP)?;
    let Ok(ToAgent::Setup { steps, .. }) = ToAgent::decode(&message) else {
        log::note("the first steps cannot be read");
        return Err(Errno(libc::EBADMSG));
    };
    for step in &steps {
        setup::perform(step).inspect_err(|_| {
            log::note(&String::from_utf8_lossy(&setup::describe(step)));
        })?;
    }
    wait_until_quiet();
    Ok(())
}

/// Waits until the kernel has done what it does once after a boot, and will not do again soon what it does each second.
///
/// What is due when a template is saved, each of its clones does first: a second after it has found the counter the
/// kernel takes it for its clock, for which it stops all processors (some 600 blocks to translate), and at full seconds
/// it counts its pages.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when a kernel has nothing more to do"
)]
fn wait_until_quiet() {
    let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
    let until = (now / SECOND_NS + 2) * SECOND_NS + SECOND_NS / 20;
    thread::sleep(Duration::from_nanos(until - now));
}

/// Opens the port to the host, and waits until there is one.
///
/// The machine is made with one port, so it is not looked for by its name: every step that is not taken is code that an
/// emulated machine need not translate.
///
/// # Errors
/// When the port is there and cannot be opened, or the kernel cannot tell of devices.
pub fn open_port() -> Result<OwnedFd> {
    if let Some(port) = try_port()? {
        return Ok(port);
    }
    let watch = Watch::new(Path::new(OsStr::from_bytes(PORT.to_bytes())))?;
    loop {
        // Looked for after the watch began, so nothing that comes in between is missed.
        if let Some(port) = try_port()? {
            return Ok(port);
        }
        sys::wait_readable([watch.names.as_fd(), watch.devices.as_fd()], PORT_WAIT_MS);
        watch.is_there();
    }
}

fn try_port() -> Result<Option<OwnedFd>> {
    match sys::open(PORT, libc::O_RDWR | libc::O_NONBLOCK, 0) {
        Ok(port) => Ok(Some(port)),
        // The device file comes first, the device behind it a moment later.
        Err(Errno(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}
