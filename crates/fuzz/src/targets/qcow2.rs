//! The disk on a qcow2 image that somebody hostile has made: nothing panics, every request ends, memory stays bounded
//! whatever the header says, no other file is opened, and the image does not grow past what its process may write.
//!
//! The first bytes are a row of decisions, what is asked of the disk; from [`ASKED`] on the input is the image.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

use cloche_device::Memory;
use cloche_disk::qcow2::Qcow2File;
use cloche_disk::storage::Storage;
use vm_memory::{GuestAddress, GuestMemory};

use crate::choices::Choices;
use crate::process::{open_fds, MAX_FILE};

/// Bytes of decisions before the image.
const ASKED: usize = 32;
const SECTOR: u64 = 512;

pub fn run(data: &[u8]) {
    let (asked, image) = data.split_at(data.len().min(ASKED));
    let mut choices = Choices::new(asked);
    // SAFETY: a C string and no other pointers; the descriptor is new and belongs to nobody.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"image".as_ptr(), 1)) };
    file.write_all(image).expect("there is room");
    let watched = file.try_clone().expect("a descriptor");
    let is_readonly = choices.once_in(4);
    let Ok(mut disk) = Qcow2File::new(file, is_readonly) else {
        return;
    };
    let own = open_fds();
    let size = disk.size_bytes() / SECTOR * SECTOR;
    let memory: Memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("memory");
    while !choices.is_empty() {
        let length = SECTOR << (choices.byte() % 8);
        let Some(room) = size.checked_sub(length) else {
            continue;
        };
        let offset = match choices.byte() {
            byte @ 0..=0x7F => u64::from(byte) * SECTOR,
            byte @ 0x80..=0xBF => room / 64 * u64::from(byte % 64),
            byte => room.saturating_sub(u64::from(byte) * SECTOR),
        };
        let offset = offset.min(room) / SECTOR * SECTOR;
        let slice = memory.get_slice(GuestAddress(0), length as usize);
        let slices = [slice.expect("it is there")];
        // The guest is told how it went; here it need not go well.
        let _ = match choices.byte() % 8 {
            0..=2 => disk.read(offset, &slices),
            _ if is_readonly => disk.read(offset, &slices),
            3 | 4 => disk.write(offset, &slices),
            5 => disk.discard(offset, length),
            6 => disk.write_zeroes(offset, length, choices.once_in(2)),
            _ => disk.flush(),
        };
        assert_eq!(open_fds(), own, "another file was opened");
    }
    drop(disk);
    let length = watched.metadata().expect("it is open").len();
    assert!(length <= MAX_FILE, "the image has {length} bytes");
}

/// Small sound images: with clusters of 512 bytes and of 4 KiB, of the second and third version, one of each with data.
pub fn samples() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for (version, bits) in [(3, 9), (3, 12), (2, 9)] {
        for has_data in [false, true] {
            let asked: [u8; ASKED] = std::array::from_fn(|place| (place * 37) as u8);
            samples.push([&asked[..], &image(version, bits, has_data)].concat());
        }
    }
    samples
}

/// One image (docs/interop/qcow2.txt of QEMU) of a disk of 64 KiB: header, refcount table and block, L1, L2, one cluster.
fn image(version: u32, bits: u32, has_data: bool) -> Vec<u8> {
    const COPIED: u64 = 1 << 63;
    let cluster = 1_usize << bits;
    let at = |number: usize| (number * cluster) as u64;
    let mut image = vec![0; cluster * 6];
    let mut put =
        |place: usize, bytes: &[u8]| image[place..place + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xFB");
    put(4, &version.to_be_bytes());
    put(20, &bits.to_be_bytes());
    put(24, &(64_u64 << 10).to_be_bytes());
    put(36, &(64_u32 << 10 >> (2 * bits - 3)).max(1).to_be_bytes());
    put(40, &at(3).to_be_bytes());
    put(48, &at(1).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version > 2 {
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
    }
    put(cluster, &at(2).to_be_bytes());
    for counted in 0..6 {
        put(2 * cluster + 2 * counted, &1_u16.to_be_bytes());
    }
    if has_data {
        put(3 * cluster, &(at(4) | COPIED).to_be_bytes());
        put(4 * cluster, &(at(5) | COPIED).to_be_bytes());
        put(5 * cluster, &[7; 512]);
    }
    image
}
