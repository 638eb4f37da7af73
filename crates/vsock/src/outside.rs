//! The host's side of the device: its listening socket, the supervisor, and the streams of programs.
//!
//! The process can neither make a socket nor connect one. Programs that connect come through a socket that listens already; to
//! whom a guest connects, the supervisor does, and passes the stream on (`protocol/vsock.md`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const LISTENER: u64 = u64::MAX;
const SUPERVISOR: u64 = u64::MAX - 1;
/// Streams that are looked at in one turn, at most; the others have theirs in the next.
const EVENTS: usize = 64;
/// The supervisor's answer when there is a stream; it comes with that.
const CONNECTED: u8 = 1;

/// A stream to a program of the host, which never blocks.
#[derive(Debug)]
pub struct Stream(File);

impl From<OwnedFd> for Stream {
    fn from(fd: OwnedFd) -> Self {
        // Read and written with the calls that the filter allows anyway.
        Stream(File::from(fd))
    }
}

impl Stream {
    /// Ends one direction or both; a program that has gone is told nothing.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: no pointers.
        unsafe { libc::shutdown(self.0.as_raw_fd(), how) };
    }
}

impl Read for Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.0.read(room)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The supervisor's socket, written to as a file is: the standard library's sockets use a call that no filter allows.
struct Supervisor(File);

impl ScmSocket for Supervisor {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What has come from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A program connects.
    Knock,
    /// The supervisor answers.
    Answer,
    /// Something has changed about the stream of this number.
    Stream {
        /// The number under which it is listened to.
        slot: usize,
        /// The program has hung up.
        is_over: bool,
    },
}

/// The host's side.
pub struct Outside {
    epoll: Epoll,
    listener: UnixListener,
    supervisor: Supervisor,
}

impl Outside {
    /// Listens to a socket that listens, and to the supervisor; neither blocks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(listener: UnixListener, supervisor: File) -> io::Result<Self> {
        let outside = Outside {
            epoll: Epoll::new()?,
            listener,
            supervisor: Supervisor(supervisor),
        };
        outside.add(&outside.listener, LISTENER, EventSet::IN)?;
        outside.add(&outside.supervisor.0, SUPERVISOR, EventSet::IN)?;
        Ok(outside)
    }

    /// What can be read when something has come.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    // Each change is told once: nobody has to be listened to less while nothing can be done for them.
    fn add(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// Listens to a stream, as long as it is open, under a number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen_to(&self, slot: usize, stream: &Stream) -> io::Result<()> {
        self.add(&stream.0, slot as u64, EventSet::IN | EventSet::OUT)
    }

    /// Looks at what has come. What does not fit into one answer comes with the next.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn look(&self) -> io::Result<Vec<Event>> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let heard = events.iter().take(count).map(|event| match event.data() {
            LISTENER => Event::Knock,
            SUPERVISOR => Event::Answer,
            slot => Event::Stream {
                slot: usize::try_from(slot).unwrap_or(usize::MAX),
                is_over: event
                    .event_set()
                    .intersects(EventSet::HANG_UP | EventSet::ERROR),
            },
        });
        Ok(heard.collect())
    }

    /// Takes the next program that connects, if there is one.
    ///
    /// # Errors
    /// When that cannot be: there are too many open files.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                self.listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        if fd >= 0 {
            // SAFETY: it was just made and belongs to nobody.
            return Ok(Some(Stream::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }

    /// Asks the supervisor for whoever listens for a port of the host. One question at a time.
    ///
    /// # Errors
    /// When it has gone.
    pub fn ask(&mut self, port: u32) -> io::Result<()> {
        self.supervisor.0.write_all(&port.to_le_bytes())
    }

    /// Reads its answer, if that has come: a stream, or that there is none.
    ///
    /// # Errors
    /// When it has gone.
    pub fn answer(&self) -> io::Result<Option<Option<Stream>>> {
        let mut word = [0];
        match self.supervisor.recv_with_fd(&mut word) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, file)) if word == [CONNECTED] => {
                Ok(Some(file.map(|file| Stream::from(OwnedFd::from(file)))))
            }
            Ok(_) => Ok(Some(None)),
            Err(error) => {
                let error = io::Error::from(error);
                match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }
}
