//! The vhost-user device: takes requests out of the queues, has them answered, gives them back.
//!
//! The virtiofsd library's own device ends the process at a request it cannot parse and spins on a broken ring. A guest
//! may write anything into its queues, so this one answers what it can, gives the rest back empty, and never stops.
//! Everything about saving and restoring is left to the library's device.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
};
use vhost::vhost_user::Backend as FrontendRequests;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem, SerializableFileSystem};
use virtiofsd::fuse::{BatchForgetIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use virtiofsd::vhost_user::{VhostUserFsBackend, VhostUserFsBackendBuilder};
use vm_memory::{
    ByteValued, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::request;

type Memory = GuestMemoryMmap<BitmapMmapRegion>;
type MemoryGuard = GuestMemoryLoadGuard<Memory>;
type Chain = DescriptorChain<MemoryGuard>;
type Vring = VringMutex<GuestMemoryAtomic<Memory>>;
type State = VringState<GuestMemoryAtomic<Memory>>;

/// What a served tree must be able to do.
pub trait Served: FileSystem + SerializableFileSystem + Clone + Send + Sync + 'static {}

impl<F: FileSystem + SerializableFileSystem + Clone + Send + Sync + 'static> Served for F {}

struct Job {
    vring: Vring,
    memory: GuestMemoryAtomic<Memory>,
    chain: Chain,
}

/// One virtio-fs device.
pub struct Backend<F: Served> {
    device: VhostUserFsBackend<F>,
    answerer: Arc<Answerer<F>>,
    memory: RwLock<Option<GuestMemoryAtomic<Memory>>>,
    event_idx: Arc<AtomicBool>,
    workers: Option<Sender<Job>>,
}

impl<F: Served> Backend<F> {
    /// Makes a device that serves `files`, with `threads` workers (0: none) and its tag, if the VMM asks for one.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(files: &F, threads: usize, tag: Option<String>) -> io::Result<Self> {
        let answerer = Arc::new(Answerer {
            files: files.clone(),
            server: Server::new(files.clone()),
        });
        let event_idx = Arc::new(AtomicBool::new(false));
        let workers = if threads == 0 {
            None
        } else {
            Some(start_workers(&answerer, &event_idx, threads)?)
        };
        let device = VhostUserFsBackendBuilder::default()
            .set_tag(tag)
            .build(files.clone())?;
        Ok(Backend {
            device,
            answerer,
            memory: RwLock::new(None),
            event_idx,
            workers,
        })
    }

    /// Answers what is in the queue until it is empty.
    fn drain(&self, vring: &Vring, memory: &GuestMemoryAtomic<Memory>) {
        let event_idx = self.event_idx.load(Ordering::Relaxed);
        let mut state = vring.get_mut();
        let mut is_idle = false;
        loop {
            if event_idx && state.disable_notification().is_err() {
                return;
            }
            let guard = memory.memory();
            let chains: Vec<Chain> = match state.get_queue_mut().iter(guard.clone()) {
                Ok(chains) => chains.collect(),
                Err(error) => return log::warn!("the guest broke its queue: {error}"),
            };
            // A ring that promises requests and holds none twice in a row is broken; a working one never does that.
            if chains.is_empty() && is_idle {
                return log::warn!("the guest broke its queue: nothing in it");
            }
            is_idle = chains.is_empty();
            for chain in chains {
                match &self.workers {
                    Some(workers) => {
                        let job = Job {
                            vring: vring.clone(),
                            memory: memory.clone(),
                            chain,
                        };
                        if workers.send(job).is_err() {
                            return log::error!("no worker is left");
                        }
                    }
                    None => {
                        let head = chain.head_index();
                        let length = self.answerer.answer(&guard, chain);
                        give_back(&mut state, head, event_idx, length);
                    }
                }
            }
            if !event_idx || !matches!(state.enable_notification(), Ok(true)) {
                return;
            }
        }
    }
}

fn start_workers<F: Served>(
    answerer: &Arc<Answerer<F>>,
    event_idx: &Arc<AtomicBool>,
    threads: usize,
) -> io::Result<Sender<Job>> {
    let (sender, receiver) = channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..threads {
        let (answerer, event_idx, receiver) =
            (answerer.clone(), event_idx.clone(), receiver.clone());
        std::thread::Builder::new()
            .name("worker".into())
            .spawn(move || work(&answerer, &event_idx, &receiver))?;
    }
    Ok(sender)
}

fn work<F: Served>(answerer: &Answerer<F>, event_idx: &AtomicBool, jobs: &Mutex<Receiver<Job>>) {
    // The library changes the working directory of the thread for a moment when it handles extended attributes.
    // SAFETY: no pointers; only this thread's own view of its working directory is split off.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return log::error!(
            "a worker cannot have a working directory of its own: {}",
            io::Error::last_os_error()
        );
    }
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let head = job.chain.head_index();
        let length = answerer.answer(&job.memory.memory(), job.chain);
        give_back(
            &mut job.vring.get_mut(),
            head,
            event_idx.load(Ordering::Relaxed),
            length,
        );
    }
}

struct Answerer<F: Served> {
    files: F,
    server: Server<F>,
}

impl<F: Served> Answerer<F> {
    /// Has one request answered; returns how many bytes were written for the guest.
    fn answer(&self, memory: &MemoryGuard, chain: Chain) -> usize {
        let Some(header) = read_header(memory, &chain) else {
            return 0;
        };
        let (Ok(reader), Ok(writer)) = (
            Reader::new(memory, chain.clone()),
            Writer::new(memory, chain.clone()),
        ) else {
            return 0;
        };
        // The library splits the head of the reply off without looking whether there is room for one, so a request
        // without room never gets there. What it asks for is read once: the guest could change it meanwhile.
        if writer.available_bytes() < size_of::<OutHeader>() {
            if let Err(error) = self.forget(&header, reader) {
                log::warn!("a request to forget cannot be understood: {error}");
            }
            return 0;
        }
        let _scope = request::Scope::enter(header.opcode == Opcode::Readdirplus as u32);
        match self
            .server
            .handle_message(reader, writer, None::<&mut FrontendRequests>)
        {
            Ok(length) => length,
            Err(error) => {
                log::warn!("request {} cannot be understood: {error}", header.opcode);
                refuse(memory, chain, &header)
            }
        }
    }

    fn forget(&self, header: &InHeader, mut reader: Reader) -> io::Result<()> {
        reader.read_obj::<InHeader>()?;
        if header.opcode == Opcode::Forget as u32 {
            let body: ForgetIn = reader.read_obj()?;
            self.files
                .forget(Context::from(*header), header.nodeid.into(), body.nlookup);
        } else if header.opcode == Opcode::BatchForget as u32 {
            let body: BatchForgetIn = reader.read_obj()?;
            for _ in 0..body.count {
                let one: ForgetOne = reader.read_obj()?;
                self.files
                    .forget(Context::from(*header), one.nodeid.into(), one.nlookup);
            }
        }
        Ok(())
    }
}

fn read_header(memory: &MemoryGuard, chain: &Chain) -> Option<InHeader> {
    Reader::new(memory, chain.clone()).ok()?.read_obj().ok()
}

fn refuse(memory: &MemoryGuard, chain: Chain, header: &InHeader) -> usize {
    let length = size_of::<OutHeader>();
    let reply = OutHeader {
        len: length as u32,
        error: -libc::EINVAL,
        unique: header.unique,
    };
    match Writer::new(memory, chain).map(|mut writer| writer.write_all(reply.as_slice())) {
        Ok(Ok(())) => length,
        _ => 0,
    }
}

fn give_back(state: &mut State, head: u16, event_idx: bool, length: usize) {
    if let Err(error) = state.add_used(head, u32::try_from(length).unwrap_or(0)) {
        log::warn!("the guest broke its queue: {error}");
    }
    let is_wanted = !event_idx || state.needs_notification().unwrap_or(true);
    if is_wanted {
        if let Err(error) = state.signal_used_queue() {
            log::warn!("the guest cannot be notified: {error}");
        }
    }
}

impl<F: Served> VhostUserBackend for Backend<F> {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.device.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.device.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn acked_features(&self, features: u64) {
        self.device.acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.device.protocol_features()
    }

    fn reset_device(&self) {
        self.device.reset_device();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        if self
            .protocol_features()
            .contains(VhostUserProtocolFeatures::CONFIG)
        {
            self.device.get_config(offset, size)
        } else {
            Vec::new()
        }
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn set_backend_req_fd(&self, requests: FrontendRequests) {
        self.device.set_backend_req_fd(requests);
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.device.exit_event(thread)
    }

    fn handle_event(
        &self,
        event: u16,
        set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self
            .memory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // An error would end the thread that waits for the queues, and the guest would wait for ever.
        if let (Some(vring), Some(memory), true) =
            (vrings.get(usize::from(event)), memory, set == EventSet::IN)
        {
            self.drain(vring, &memory);
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        self.device.set_device_state_fd(direction, phase, file)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.device.check_device_state()
    }
}
