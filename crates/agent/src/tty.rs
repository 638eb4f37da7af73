//! Programs on a terminal. A process group whose parent is not in its session is orphaned, and Ctrl-Z does nothing to
//! it. So a small process, the stub, leads the session and is the program's parent; it reports to the agent over a
//! packet socket and ends when the agent closes that.

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cloche_proto::codec::{Reader, Writer};
use libc::c_int;

use crate::spawn::{Program, SpawnError, Stack};
use crate::sys::{self, Change, Errno, Result, Usage};

const LARGEST_REPORT: usize = 4096;

/// A pseudo-terminal: master, and slave.
pub fn open_terminal(rows: u16, cols: u16, uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let master = sys::open(c"/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let fd = master.as_raw_fd();
    let unlocked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int; TIOCGPTPEER takes open flags and gives a new descriptor.
    let slave = unsafe {
        if libc::ioctl(fd, libc::TIOCSPTLCK, &unlocked) < 0 {
            return Err(Errno::last());
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let slave = libc::ioctl(fd, libc::TIOCGPTPEER, flags);
        if slave < 0 {
            return Err(Errno::last());
        }
        OwnedFd::from_raw_fd(slave)
    };
    resize(master.as_fd(), rows, cols)?;
    // SAFETY: tcgetattr fills the termios before it is used; fchown has no pointers. An agent that is not root owns
    // the terminal already.
    unsafe {
        let mut mode: libc::termios = zeroed();
        if libc::tcgetattr(slave.as_raw_fd(), &mut mode) == 0 {
            mode.c_iflag |= libc::IUTF8;
            libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &mode);
        }
        libc::fchown(slave.as_raw_fd(), uid, libc::gid_t::MAX);
    }
    Ok((master, slave))
}

/// Sets a terminal's size.
pub fn resize(master: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) } < 0 {
        return Err(Errno::last());
    }
    Ok(())
}

/// A terminal beside a program's standard input, of which nobody knows yet whether the program will take keys from it: a
/// `less` at the end of a pipe does, and a `grep` does not. Until it does, what is typed is others' to read.
#[derive(Debug)]
pub struct Unused {
    mode: Mode,
    /// Says that somebody has opened the controlling terminal.
    pub opens: Option<OwnedFd>,
}

/// Flags of input, output, control and local modes, and the special characters.
type Mode = ([libc::tcflag_t; 4], [libc::cc_t; libc::NCCS]);

impl Unused {
    /// Starts to watch a fresh terminal. Where /dev/tty is the host's, too (`shares_devices`), others open it as well.
    ///
    /// # Errors
    /// When the terminal has no mode, or the kernel gives no inotify instance.
    pub fn new(master: BorrowedFd<'_>, shares_devices: bool) -> Result<Self> {
        let opens = (!shares_devices).then(sys::inotify).transpose()?;
        if let Some(opens) = &opens {
            sys::inotify_watch_opens(opens.as_fd(), c"/dev/tty")?;
        }
        let mode = mode(master)?;
        Ok(Self { mode, opens })
    }

    /// Whether a program has opened the terminal by its name, or has set its mode, as whoever reads single keys or
    /// passwords does.
    pub fn is_used_now(&self, master: BorrowedFd<'_>) -> bool {
        let is_open = self
            .opens
            .as_ref()
            .is_some_and(|opens| sys::read(opens.as_fd(), &mut [0; 4096]).is_ok());
        is_open || mode(master).is_ok_and(|mode| mode != self.mode)
    }
}

/// The mode that the slave has.
fn mode(master: BorrowedFd<'_>) -> Result<Mode> {
    // SAFETY: all zero is a valid termios, which tcgetattr fills.
    unsafe {
        let mut mode: libc::termios = zeroed();
        if libc::tcgetattr(master.as_raw_fd(), &raw mut mode) < 0 {
            return Err(Errno::last());
        }
        let flags = [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag];
        Ok((flags, mode.c_cc))
    }
}

/// What a stub tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The program runs.
    Started(i32),
    /// The program could not be started.
    Failed(SpawnError),
    /// The program's state has changed.
    Changed(Change, Usage),
}

/// Starts the stub, which starts the program. Returns its process id and the socket of its reports.
///
/// `input` and `error` are the program's standard input and error when they are not the terminal.
pub fn start(
    program: &Program,
    slave: OwnedFd,
    input: Option<OwnedFd>,
    error: Option<OwnedFd>,
) -> std::result::Result<(i32, OwnedFd), SpawnError> {
    let failed = |errno| SpawnError::new(errno, b"terminal");
    let (ours, theirs) = sys::packet_pair().map_err(failed)?;
    sys::set_nonblocking(ours.as_fd()).map_err(failed)?;
    let pid = sys::fork(|| run_stub(program, slave, [input, error], &theirs)).map_err(failed)?;
    Ok((pid, ours))
}

/// The stub's whole life, in its own process.
fn run_stub(program: &Program, slave: OwnedFd, others: [Option<OwnedFd>; 2], socket: &OwnedFd) {
    let cgroup = program.cgroup.as_ref().map(AsRawFd::as_raw_fd);
    let [input, error] = others
        .each_ref()
        .map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd));
    close_all_but([
        Some(slave.as_raw_fd()),
        Some(socket.as_raw_fd()),
        cgroup,
        input,
        error,
    ]);
    sys::lead_session();
    // SAFETY: no pointers: the argument of TIOCSCTTY is a number.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        let error = SpawnError::new(Errno::last(), b"terminal");
        return report(socket, &Report::Failed(error));
    }
    let terminal = slave.as_fd();
    let [input, error] = others
        .each_ref()
        .map(|fd| fd.as_ref().map_or(terminal, AsFd::as_fd));
    let streams = [input, terminal, error];
    let pid = match program.start(streams, Some(terminal), &mut Stack::new()) {
        Ok(pid) => pid,
        Err(error) => return report(socket, &Report::Failed(error)),
    };
    // The program's copies are the only ones that keep the streams open.
    drop(others);
    report(socket, &Report::Started(pid));
    while let Some(waited) = sys::wait_any(true) {
        if waited.pid != pid {
            continue;
        }
        let ended = matches!(waited.change, Change::Exited(_) | Change::Killed(_));
        if ended {
            break_off(slave, socket, &Report::Changed(waited.change, waited.usage));
            return;
        }
        report(socket, &Report::Changed(waited.change, waited.usage));
    }
}

/// The program has ended. Its last output may still be in the terminal, and would be lost if the session ended with
/// its leader now: so the stub waits until the agent has read it.
fn break_off(slave: OwnedFd, socket: &OwnedFd, last: &Report) {
    // Closed first: then the agent sees the end of the output as soon as nobody else has the terminal open.
    drop(slave);
    report(socket, last);
    while matches!(sys::read(socket.as_fd(), &mut [0]), Err(errno) if errno.is_again()) {}
}

fn report(socket: &OwnedFd, report: &Report) {
    // When the agent is gone there is nobody to tell.
    let _ = sys::write(socket.as_fd(), &encode(report));
}

fn close_all_but(mut keep: [Option<i32>; 5]) {
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().flatten() {
        sys::close_range(first, fd - 1, false);
        first = fd + 1;
    }
    sys::close_range(first, i32::MAX, false);
}

fn encode(report: &Report) -> Vec<u8> {
    let mut w = Writer::new(LARGEST_REPORT);
    match report {
        Report::Started(pid) => w.u8(0).raw(&pid.to_le_bytes()),
        Report::Failed(error) => w.u8(1).raw(&error.errno.0.to_le_bytes()).bytes(&error.what),
        Report::Changed(change, usage) => {
            let (kind, value) = match change {
                Change::Exited(status) => (2, *status),
                Change::Killed(signal) => (3, *signal),
                Change::Stopped(signal) => (4, *signal),
                Change::Continued => (5, 0),
            };
            w.u8(kind).raw(&value.to_le_bytes());
            w.u64(usage.user_ns).u64(usage.sys_ns);
            w.u64(usage.maxrss_bytes)
        }
    };
    w.finish().unwrap_or_default()
}

fn decode(packet: &[u8]) -> cloche_proto::codec::Result<Report> {
    let mut r = Reader::new(packet);
    let kind = r.u8()?;
    let value = i32::from_le_bytes(r.array()?);
    if kind == 0 {
        return Ok(Report::Started(value));
    }
    if kind == 1 {
        return Ok(Report::Failed(SpawnError::new(Errno(value), r.bytes()?)));
    }
    let usage = Usage {
        user_ns: r.u64()?,
        sys_ns: r.u64()?,
        maxrss_bytes: r.u64()?,
    };
    let change = match kind {
        2 => Change::Exited(value),
        3 => Change::Killed(value),
        4 => Change::Stopped(value),
        _ => Change::Continued,
    };
    Ok(Report::Changed(change, usage))
}

/// Reads the next report; `None` when there is none now.
pub fn next_report(socket: BorrowedFd<'_>) -> Option<Report> {
    let mut packet = [0; LARGEST_REPORT];
    let count = sys::read(socket, &mut packet).ok()?;
    decode(&packet[..count]).ok()
}
