//! The virtio-fs device: has the requests in its queues answered.
//!
//! The virtiofsd library's own device ends the process at a request it cannot parse and spins on a broken ring. A guest
//! may write anything into its queues, so this one answers what it can, gives the rest back empty, and never stops.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use cloche_device::{
    Broken, Chain, Device, Memory, Progress, StateTransfer, Vring, Watch, Written,
};
use vhost::vhost_user::Backend as FrontendRequests;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem, SerializableFileSystem};
use virtiofsd::fuse::{BatchForgetIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::ByteValued;

use crate::orders::Orders;
use crate::request;

/// High priority requests and all others.
const QUEUES: usize = 2;
/// The most a queue may have.
const QUEUE_SIZE: u16 = 32768;
/// Inodes that one request may have forgotten: what fits into the longest request that the library takes. A chain of
/// descriptors that lie on top of each other could name thousands of millions.
const MAX_FORGOTTEN: u32 = (1 << 20) / size_of::<ForgetOne>() as u32;
/// Bytes of the tag in the configuration space (virtio 1.2, 5.11.4).
pub const TAG_BYTES: usize = 36;

/// What a served tree must be able to do.
pub trait Served: FileSystem + SerializableFileSystem + Clone + Send + Sync + 'static {}

impl<F: FileSystem + SerializableFileSystem + Clone + Send + Sync + 'static> Served for F {}

/// One virtio-fs device.
pub struct Backend<F: Served> {
    answerer: Answerer<F>,
    tag: Option<String>,
    orders: Option<Orders>,
}

impl<F: Served> Backend<F> {
    /// Makes a device that serves `files`, with its tag if the VMM asks for one (at most [`TAG_BYTES`]).
    pub fn new(files: F, tag: Option<String>) -> Self {
        Backend {
            answerer: Answerer {
                files: files.clone(),
                server: Server::new(files),
            },
            tag,
            orders: None,
        }
    }

    /// Lets it take orders while it serves.
    #[must_use]
    pub fn with_orders(mut self, orders: Option<Orders>) -> Self {
        self.orders = orders;
        self
    }
}

impl<F: Served> Device for Backend<F> {
    fn queues(&self) -> usize {
        QUEUES
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config(&self) -> Option<Vec<u8>> {
        let mut fields = self.tag.clone()?.into_bytes();
        fields.resize(TAG_BYTES, 0);
        // The number of queues for requests that are not of high priority.
        fields.extend((QUEUES as u32 - 1).to_le_bytes());
        Some(fields)
    }

    fn process(&mut self, _queue: usize, vring: &mut Vring) -> Result<Progress, Broken> {
        vring.serve(|request| {
            let memory = request.memory();
            let chain = request.into_chain();
            let written = chain.map_or(0, |chain| self.answerer.answer(memory, chain));
            Written::Front(u32::try_from(written).unwrap_or(0))
        })
    }

    fn reset(&mut self) {
        self.answerer.files.destroy();
    }

    fn watch(&self) -> Option<Watch> {
        self.orders.as_ref().and_then(Orders::watch)
    }

    fn woken(&mut self) {
        if let Some(orders) = &mut self.orders {
            orders.obey();
        }
    }

    fn has_state(&self) -> bool {
        true
    }

    fn transfer(&mut self, direction: StateTransfer, file: File) -> io::Result<()> {
        match direction {
            StateTransfer::Save => {
                // The library may prepare this beside the guest that still runs, with a thread that the filter forbids;
                // what is saved here is small.
                self.answerer
                    .files
                    .prepare_serialization(Arc::new(AtomicBool::new(false)));
                self.answerer.files.serialize(file)
            }
            StateTransfer::Load => self.answerer.files.deserialize_and_apply(file),
        }
    }
}

struct Answerer<F: Served> {
    files: F,
    server: Server<F>,
}

impl<F: Served> Answerer<F> {
    /// Has one request answered; returns how many bytes were written for the guest.
    fn answer(&self, memory: &Memory, chain: Chain) -> usize {
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
            if body.count > MAX_FORGOTTEN {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            for _ in 0..body.count {
                let one: ForgetOne = reader.read_obj()?;
                self.files
                    .forget(Context::from(*header), one.nodeid.into(), one.nlookup);
            }
        }
        Ok(())
    }
}

fn read_header(memory: &Memory, chain: &Chain) -> Option<InHeader> {
    Reader::new(memory, chain.clone()).ok()?.read_obj().ok()
}

fn refuse(memory: &Memory, chain: Chain, header: &InHeader) -> usize {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use virtiofsd::soft_idmap::Id;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// Files that only count what is forgotten.
    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicU32>);

    struct Nothing;

    impl virtiofsd::filesystem::DirectoryIterator for Nothing {
        fn next(&mut self) -> Option<virtiofsd::filesystem::DirEntry<'_>> {
            None
        }
    }

    impl FileSystem for Counting {
        type Inode = u64;
        type Handle = u64;
        type DirIter = Nothing;

        fn forget(&self, ctx: Context, _inode: u64, _count: u64) {
            assert_eq!(ctx.uid.into_inner(), 0);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl SerializableFileSystem for Counting {}

    /// Writes a request to forget `count` inodes, in a chain whose descriptors all name the same megabyte, and returns how
    /// many were forgotten.
    fn forgotten(count: u32) -> u32 {
        const MEMORY: u32 = 1 << 20;
        const PARTS: u16 = 256;
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let write =
            |address: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address)).unwrap();
        let lend = |place: u64, address: u64, length: u32, next: u16| {
            write(place, &address.to_le_bytes());
            write(place + 8, &length.to_le_bytes());
            // It has a next one, if there is one.
            write(place + 12, &u16::from(next != 0).to_le_bytes());
            write(place + 14, &next.to_le_bytes());
        };
        let header = InHeader {
            len: 0,
            opcode: Opcode::BatchForget as u32,
            ..Default::default()
        };
        write(0x8000, header.as_slice());
        write(0x8000 + size_of::<InHeader>() as u64, &count.to_le_bytes());
        lend(0, 0x8000, size_of::<InHeader>() as u32 + 8, 1);
        for part in 1..PARTS {
            let next = if part + 1 < PARTS { part + 1 } else { 0 };
            lend(16 * u64::from(part), 0, MEMORY, next);
        }
        write(0x4002, &1_u16.to_le_bytes());
        let files = Counting::default();
        let mut device = Backend::new(files.clone(), None);
        let mut vring = Vring::new(256).unwrap();
        vring.set_memory(memory.clone());
        vring.set_size(256).unwrap();
        vring.set_places(0, 0x4000, 0x5000).unwrap();
        vring.start(File::open("/dev/null").unwrap()).unwrap();
        device.process(0, &mut vring).unwrap();
        files.0.load(Ordering::Relaxed)
    }

    #[test]
    fn no_request_has_more_forgotten_than_one_can_name() {
        assert_eq!(forgotten(3), 3);
        assert_eq!(forgotten(MAX_FORGOTTEN), MAX_FORGOTTEN);
        assert_eq!(forgotten(u32::MAX), 0);
    }
}
