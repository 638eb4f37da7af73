//! The one loop of a device process: the frontend's messages, the guest's kicks, and signals that ask for an end.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::channel::Channel;
use crate::early::Early;
use crate::frontend::Frontend;
use crate::inherited::Socket;
use crate::patience::Patience;
use crate::watch::DEVICE;
use crate::{Device, Over, Reconnect};

const SIGNAL: u64 = u64::MAX;
const SOCKET: u64 = u64::MAX - 1;
const EVENTS: usize = 16;

/// Why a connection ended.
enum End {
    Frontend,
    Signal,
    Device(Over),
}

/// A device that waits for its frontend.
pub(crate) struct Server {
    frontend: Arc<Mutex<Frontend>>,
    epoll: Arc<Epoll>,
    /// Read by nobody: that there is something to read says all.
    _signals: OwnedFd,
}

impl Server {
    /// Makes everything that is needed before the first frontend; after this only the system calls of the loop are made.
    pub fn new(device: Box<dyn Device>, signals: OwnedFd) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let event = EpollEvent::new(EventSet::IN, SIGNAL);
        epoll.ctl(ControlOperation::Add, signals.as_raw_fd(), event)?;
        let frontend = Arc::new(Mutex::new(Frontend::new(device, epoll.clone())?));
        Ok(Server {
            frontend,
            epoll,
            _signals: signals,
        })
    }

    /// Serves until a signal asks for the end, or the frontend is gone and no other may come.
    pub fn run(&self, socket: Socket, reconnect: Reconnect) -> io::Result<()> {
        match socket {
            Socket::Connected(stream) => match self.serve(stream)? {
                End::Device(over) => Err(io::Error::other(over)),
                End::Frontend | End::Signal => Ok(()),
            },
            Socket::Listening(listener) => loop {
                if matches!(self.wait_for(&listener)?, End::Signal) {
                    return Ok(());
                }
                let stream = listener.accept()?.0;
                match (self.serve(stream), reconnect) {
                    (Ok(End::Device(over)), _) => return Err(io::Error::other(over)),
                    (Ok(End::Frontend), Reconnect::AcceptAgain) => {}
                    (Err(error), Reconnect::AcceptAgain) => log::warn!("{error}"),
                    (Ok(_), _) => return Ok(()),
                    (Err(error), Reconnect::Exit) => return Err(error),
                }
                self.lock().disconnect()?;
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Frontend> {
        // One thread; the lock is what the library asks for.
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a frontend knocks, or a signal asks for the end.
    fn wait_for(&self, listener: &impl AsRawFd) -> io::Result<End> {
        let _guard = self.listen_to(listener, SOCKET)?;
        self.lock().rewatch()?;
        log::debug!("it waits for a frontend");
        let mut events = [EpollEvent::default(); 1];
        loop {
            match self.epoll.wait(-1, &mut events) {
                Ok(0) => {}
                Ok(_) => match events[0].data() {
                    SIGNAL => return Ok(End::Signal),
                    DEVICE => {
                        let mut frontend = self.lock();
                        frontend.woken(events[0].event_set());
                        frontend.rewatch()?;
                    }
                    _ => return Ok(End::Frontend),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Serves one frontend until it is gone or a signal asks for the end.
    fn serve(&self, stream: UnixStream) -> io::Result<End> {
        let mut requests = BackendReqHandler::from_stream(stream, self.frontend.clone());
        let _guard = self.listen_to(&requests, SOCKET)?;
        self.lock().rewatch()?;
        let mut events = [EpollEvent::default(); EVENTS];
        let mut patience = Patience::default();
        loop {
            let is_pending = self.lock().is_pending();
            let timeout = if is_pending || patience.is_left() {
                0
            } else {
                -1
            };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(0) if !is_pending => {
                    patience.looked();
                    continue;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in &events[..count] {
                match event.data() {
                    SIGNAL => return Ok(End::Signal),
                    SOCKET if self.take_early(&requests)? => {}
                    SOCKET => match requests.handle_request() {
                        Ok(()) | Err(Error::SocketRetry(_)) => self.lock().transfer(),
                        Err(
                            Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_),
                        ) => return Ok(End::Frontend),
                        Err(error) => {
                            return Err(io::Error::other(format!("the frontend: {error}")))
                        }
                    },
                    DEVICE => self.lock().woken(event.event_set()),
                    queue => {
                        let mut frontend = self.lock();
                        frontend.kicked(usize::try_from(queue).unwrap_or(usize::MAX));
                        patience.renew(frontend.device().looks());
                    }
                }
            }
            let mut frontend = self.lock();
            frontend.process();
            if let Some(over) = frontend.device().over() {
                return Ok(End::Device(over));
            }
            frontend.rewatch()?;
        }
    }

    /// Takes a message that comes too early for the library, if it is the next; returns whether it was.
    fn take_early(&self, socket: &impl AsRawFd) -> io::Result<bool> {
        let mut frontend = self.lock();
        if frontend.has_features() {
            return Ok(false);
        }
        if frontend.wants_channel() {
            if let Some(channel) = Channel::take(socket)? {
                frontend.set_channel(channel);
                return Ok(true);
            }
        }
        let Some(early) = Early::take(socket)? else {
            return Ok(false);
        };
        let done = frontend.set_vring_enable(early.index, early.is_enabled);
        early.answer(socket, done.is_ok())?;
        Ok(true)
    }

    /// Waits for a socket as long as what this gives back lives.
    fn listen_to(&self, socket: &impl AsRawFd, token: u64) -> io::Result<Listening<'_>> {
        let fd = socket.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        Ok(Listening(&self.epoll, fd))
    }
}

struct Listening<'a>(&'a Epoll, i32);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        // It is closed soon, and not listened to any more then either.
        let _ = self
            .0
            .ctl(ControlOperation::Delete, self.1, EpollEvent::default());
    }
}
