//! What the frontend may say (vhost-user, `docs/interop/vhost-user.rst` of QEMU), and what it changes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::FileOffset;
use vmm_sys_util::epoll::{Epoll, EventSet};

use crate::channel::{Channel, Ear};
use crate::inflight::{self, Inflight};
use crate::inherited::file_type;
use crate::memory::{DirtyLog, Table, MAX_REGIONS};
use crate::parts::{event, refused, region, unsupported};
use crate::vring::{Progress, Vring};
use crate::watch::{await_kick, Turn, Watched};
use crate::{Device, StateTransfer};

/// What every device offers beside its own features.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    | VhostUserVirtioFeatures::LOG_ALL.bits();
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The device, its queues, and what has been agreed with the frontend.
pub(crate) struct Frontend {
    device: Box<dyn Device>,
    vrings: Vec<Vring>,
    /// Of each queue: the descriptor that is waited for.
    awaited: Vec<Option<i32>>,
    /// Of each queue: whether it has to be looked at although nobody kicked.
    pending: Vec<bool>,
    table: Table,
    log: Option<Arc<DirtyLog>>,
    ear: Ear,
    features: u64,
    transfer: Option<(StateTransfer, File)>,
    transferred: Option<io::Result<()>>,
    epoll: Arc<Epoll>,
    watched: Watched,
}

impl Frontend {
    /// A device that nobody has said anything to. Kicks are awaited in `epoll`, under the number of their queue.
    pub fn new(device: Box<dyn Device>, epoll: Arc<Epoll>) -> io::Result<Self> {
        let count = device.queues();
        let vrings = (0..count)
            .map(|_| Vring::new(device.queue_size()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Frontend {
            device,
            vrings,
            awaited: vec![None; count],
            pending: vec![false; count],
            table: Table::default(),
            log: None,
            ear: Ear::default(),
            features: 0,
            transfer: None,
            transferred: None,
            epoll,
            watched: Watched::default(),
        })
    }

    /// Forgets everything the frontend has said, for the next one.
    pub fn disconnect(&mut self) -> io::Result<()> {
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            await_kick(&self.epoll, &mut self.awaited, index, None)?;
            *vring = Vring::new(self.device.queue_size())?;
            self.pending[index] = false;
        }
        self.table = Table::default();
        self.log = None;
        self.ear = Ear::default();
        self.features = 0;
        self.transfer = None;
        self.transferred = None;
        self.device.reset();
        self.rewatch()
    }

    /// Whether the frontend has said which features it takes.
    pub fn has_features(&self) -> bool {
        self.features != 0
    }

    /// Whether the frontend may hand over a socket on which it hears of changes.
    pub fn wants_channel(&self) -> bool {
        self.device.is_growing()
    }

    /// Takes that socket; none is no reason to fail.
    pub fn set_channel(&mut self, channel: Option<Channel>) {
        self.ear.set(channel);
    }

    /// Whether a queue has to be looked at although nobody kicked.
    pub fn is_pending(&self) -> bool {
        self.pending.contains(&true)
    }

    /// Takes a kick in.
    pub fn kicked(&mut self, index: usize) {
        let Some(vring) = self.vrings.get_mut(index) else {
            return;
        };
        match vring.take_kick() {
            Ok(()) => self.pending[index] = true,
            Err(error) => {
                log::warn!("queue {index} is not listened to any more: {error}");
                vring.set_enabled(false);
                self.update(index);
            }
        }
    }

    /// The device itself.
    pub fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    /// Takes in that what the device waits for beside its queues has come.
    pub fn woken(&mut self, events: EventSet) {
        let Some(watch) = self.device.watch() else {
            return;
        };
        for turn in watch.turns(events) {
            match turn {
                Turn::Device => self.device.woken(),
                Turn::Queue(queue) => {
                    if let Some(pending) = self.pending.get_mut(queue) {
                        *pending = true;
                    }
                }
            }
        }
    }

    /// Waits for what the device wants to wait for, as far as the queue that it is for runs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rewatch(&mut self) -> io::Result<()> {
        let runs = |queue: usize| self.awaited.get(queue).is_some_and(Option::is_some);
        let wanted = self.device.watch().and_then(|watch| watch.events(runs));
        self.watched.change(&self.epoll, wanted)
    }

    /// Looks once at every queue that has to be looked at.
    pub fn process(&mut self) {
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            if !std::mem::take(&mut self.pending[index]) || vring.awaited().is_none() {
                continue;
            }
            match self.device.process(index, vring) {
                Ok(Progress::Idle) => {}
                Ok(Progress::More) => self.pending[index] = true,
                Err(error) => {
                    log::warn!("queue {index}: {error}");
                    // A queue without rings in memory is not asked for anything: nobody could answer.
                    self.pending[index] = vring.want_another().unwrap_or(false);
                }
            }
        }
        for (index, vring) in self.vrings.iter().enumerate() {
            self.pending[index] |= vring.awaited().is_some() && self.device.is_due(index);
        }
    }

    /// Moves the device's state, if the frontend has asked for it. The other end is read or written only after the
    /// request has been answered, so this comes after that.
    pub fn transfer(&mut self) {
        if let Some((direction, file)) = self.transfer.take() {
            let result = self.device.transfer(direction, file);
            if let Err(error) = &result {
                log::error!("the device's state cannot be moved: {error}");
            }
            self.transferred = Some(result);
        }
    }

    fn offered(&self) -> u64 {
        FEATURES | self.device.features()
    }

    fn vring(&mut self, index: u32) -> Result<(usize, &mut Vring)> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        let vring = self.vrings.get_mut(index).ok_or(Error::InvalidParam)?;
        Ok((index, vring))
    }

    /// Waits for the queue's kicks exactly while it runs.
    fn update(&mut self, index: usize) {
        let wanted = self.vrings.get(index).and_then(Vring::awaited);
        if let Err(error) = await_kick(&self.epoll, &mut self.awaited, index, wanted) {
            log::warn!("queue {index} cannot be listened to: {error}");
        }
        // What was put into it before it ran had nobody to kick.
        self.pending[index] = wanted.is_some();
        if wanted.is_some() {
            self.ear.runs();
        }
    }

    fn check_inflight(&self, asked: &VhostUserInflight) -> Result<()> {
        let is_small = usize::from(asked.num_queues) <= self.vrings.len()
            && asked.queue_size <= self.device.queue_size();
        if self.device.has_inflight() && is_small {
            return Ok(());
        }
        Err(Error::InvalidParam)
    }

    fn share_memory(&mut self) {
        for vring in &mut self.vrings {
            vring.set_memory(self.table.memory().clone());
        }
    }

    fn share_log(&mut self) {
        let is_wanted = self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        for vring in &mut self.vrings {
            vring.set_log(self.log.clone().filter(|_| is_wanted));
        }
    }
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.vrings[index].set_enabled(false);
            self.update(index);
        }
        self.features = 0;
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let has_protocol = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        for index in 0..self.vrings.len() {
            self.vrings[index].set_event_idx(features & EVENT_IDX != 0);
            if !has_protocol {
                // There is no message that enables a queue then.
                self.vrings[index].set_enabled(true);
                self.update(index);
            }
        }
        self.share_log();
        self.device.accept(features);
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let shared = regions.iter().map(region).zip(files).collect();
        self.table.replace(shared).map_err(refused)?;
        self.share_memory();
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.vring(index)?.1.set_size(num).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let places = [descriptor, available, used].map(|user| self.table.translate(user));
        let [Some(table), Some(available), Some(used)] = places else {
            return Err(refused(io::Error::other("a ring outside of all memory")));
        };
        let vring = self.vring(index)?.1;
        vring.set_places(table, available, used).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.vring(index)?.1.set_next(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (place, vring) = self.vring(index)?;
        let next = vring.next();
        // Not listened to before its descriptor is closed: the frontend has another one of the same event.
        vring.set_enabled(false);
        self.update(place);
        self.vrings[place].stop();
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = event(fd)?.ok_or(Error::InvalidParam)?;
        let (place, _) = self.vring(index.into())?;
        await_kick(&self.epoll, &mut self.awaited, place, None).map_err(refused)?;
        self.vrings[place]
            .start(kick)
            .map_err(|error| refused(io::Error::other(error)))?;
        self.update(place);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = event(fd)?;
        self.vring(index.into())?.1.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Errors are in the log of this process; the guest could make any number of them.
        event(fd)?;
        self.vring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.device.config().is_some() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        if self.device.is_growing() {
            features |= VhostUserProtocolFeatures::BACKEND_REQ;
        }
        if self.device.has_state() {
            features |= VhostUserProtocolFeatures::DEVICE_STATE;
        }
        if self.device.has_inflight() {
            features |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (place, vring) = self.vring(index)?;
        vring.set_enabled(enable);
        self.update(place);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // The library bounds `size`; what lies past the end of the device's fields reads as zero.
        self.ear.asked();
        let mut answer = self.device.config().unwrap_or_default();
        answer.drain(..answer.len().min(offset as usize));
        answer.resize(size as usize, 0);
        Ok(answer)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.device.set_config(offset, data).map_err(refused)
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.check_inflight(wanted)?;
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        let (file, length) = inflight::create(queues, size).map_err(refused)?;
        Ok((VhostUserInflight::new(length, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        self.check_inflight(given)?;
        let end = given.mmap_offset.checked_add(given.mmap_size);
        let is_file = file_type(&file).map_err(refused)? == libc::S_IFREG;
        if !is_file || end.is_none_or(|end| file.metadata().is_ok_and(|file| file.len() < end)) {
            return Err(refused(io::Error::other(
                "notes smaller than they are said to be",
            )));
        }
        for (index, vring) in (0..given.num_queues).zip(&mut self.vrings) {
            let file = file.try_clone().map_err(refused)?;
            let place = FileOffset::new(file, given.mmap_offset);
            let notes = Inflight::map(place, given.mmap_size, index, given.queue_size)
                .map_err(|error| refused(io::Error::other(error)))?;
            vring.set_inflight(Some(notes));
        }
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(&mut self, added: &VhostUserSingleMemoryRegion, file: File) -> Result<()> {
        self.table.add(region(added), file).map_err(refused)?;
        self.share_memory();
        Ok(())
    }

    fn remove_mem_region(&mut self, removed: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.table.remove(region(removed)).map_err(refused)?;
        self.share_memory();
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        if phase != VhostTransferStatePhase::STOPPED || !self.device.has_state() {
            return unsupported();
        }
        let direction = match direction {
            VhostTransferStateDirection::SAVE => StateTransfer::Save,
            VhostTransferStateDirection::LOAD => StateTransfer::Load,
        };
        self.transfer = Some((direction, file));
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.transferred
            .take()
            .ok_or(Error::InvalidOperation("nothing was moved"))?
            .map_err(refused)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(&file, log.mmap_offset, log.mmap_size).map_err(refused)?;
        self.log = Some(Arc::new(log));
        self.share_log();
        Ok(())
    }
}
