//! Disks kept in qcow2 images.

mod guest;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use cloche_disk::qcow2::Qcow2File;
use cloche_disk::request::Disk;
use guest::*;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::FormatCreateBuilder;

const BYTES: u64 = 8 << 20;

fn empty() -> File {
    // SAFETY: a C string and no pointers besides.
    let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor was just made and belongs to nobody.
    unsafe { File::from_raw_fd(fd) }
}

fn image(backing: Option<&str>) -> File {
    let file = empty();
    let storage = ImageFile::try_from(file.try_clone().unwrap()).unwrap();
    let mut builder = Qcow2::<ImageFile>::create_builder(storage).size(BYTES);
    if let Some(name) = backing {
        builder = builder.backing(name.into(), "raw".into());
    }
    builder.create().unwrap();
    file
}

fn disk(file: &File, is_readonly: bool) -> Disk<Qcow2File> {
    let storage = Qcow2File::new(file.try_clone().unwrap(), is_readonly).unwrap();
    let mut disk = Disk::new(storage, b"home");
    disk.negotiate(F_ALL);
    disk
}

#[test]
fn what_is_written_is_read_back_by_the_next_process() {
    let (mut guest, file) = (Guest::new(), image(None));
    let mut first = disk(&file, false);
    assert_eq!(guest.ask(&mut first, OUT, 100, &[7; 4096], 0), 0);
    assert_eq!(guest.ask(&mut first, FLUSH, 0, &[], 0), 0);
    drop(first);
    let mut second = disk(&file, true);
    assert_eq!(guest.ask(&mut second, IN, 100, &[], 4096), 0);
    assert_eq!(guest.data(0, 4096), [7; 4096]);
    assert_eq!(guest.ask(&mut second, OUT, 100, &[8; 512], 0), 1);
    assert_eq!(guest.ask(&mut second, IN, BYTES / 512, &[], 512), 1);
}

#[test]
fn what_was_answered_is_in_the_file_when_the_process_dies() {
    let (mut guest, file) = (Guest::new(), image(None));
    let mut first = disk(&file, false);
    for sector in 0..40 {
        assert_eq!(
            guest.ask(&mut first, OUT, sector * 300, &[sector as u8 + 1; 512], 0),
            0
        );
    }
    // Nothing of it runs any more, as after SIGKILL.
    std::mem::forget(first);
    let mut second = disk(&file, false);
    for sector in 0..40 {
        assert_eq!(guest.ask(&mut second, IN, sector * 300, &[], 512), 0);
        assert_eq!(guest.data(0, 512), [sector as u8 + 1; 512]);
    }
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeros() {
    let (mut guest, file) = (Guest::new(), image(None));
    let mut disk = disk(&file, false);
    let clusters = vec![9; 16384];
    for sector in (0..512).step_by(32) {
        assert_eq!(guest.ask(&mut disk, OUT, sector, &clusters, 0), 0);
    }
    assert_eq!(
        guest.ask(&mut disk, WRITE_ZEROES, 0, &range(0, 128, 1), 0),
        0
    );
    assert_eq!(
        guest.ask(&mut disk, WRITE_ZEROES, 0, &range(131, 3, 0), 0),
        0
    );
    assert_eq!(guest.ask(&mut disk, DISCARD, 0, &range(256, 128, 0), 0), 0);
    for (sector, byte) in [
        (0, 0),
        (127, 0),
        (128, 9),
        (131, 0),
        (133, 0),
        (134, 9),
        (384, 9),
    ] {
        assert_eq!(guest.ask(&mut disk, IN, sector, &[], 512), 0);
        assert_eq!(guest.data(0, 512), [byte; 512], "sector {sector}");
    }
}

#[test]
fn an_image_that_needs_another_file_is_refused() {
    let file = image(Some("/etc/passwd"));
    let error = Qcow2File::new(file, false).unwrap_err();
    assert!(error.to_string().contains("denied"), "{error}");
}

#[test]
fn what_is_no_image_is_refused() {
    let file = empty();
    assert!(Qcow2File::new(file.try_clone().unwrap(), false).is_err());
    file.write_all_at(&[0x55; 65536], 0).unwrap();
    assert!(Qcow2File::new(file.try_clone().unwrap(), false).is_err());
    // The head of one, and then nonsense: tables of any size at any place.
    let whole = image(None);
    let mut head = [0; 104];
    whole.read_exact_at(&mut head, 0).unwrap();
    for place in (8..104).step_by(4) {
        let mut odd = head;
        odd[place..place + 4].fill(0xff);
        let damaged = image(None);
        damaged.write_all_at(&odd, 0).unwrap();
        if let Ok(storage) = Qcow2File::new(damaged, false) {
            let (mut guest, mut disk) = (Guest::new(), Disk::new(storage, b""));
            guest.ask(&mut disk, IN, 0, &[], 512);
            guest.ask(&mut disk, OUT, 0, &[1; 512], 0);
        }
    }
}

#[test]
fn an_image_that_counts_nothing_is_not_written_to() {
    // Where the table of reference counts is, in the header; and how many clusters it has.
    const TABLE: u64 = 48;
    const CLUSTERS: u64 = 56;
    let table = |file: &File| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, TABLE).unwrap();
        u64::from_be_bytes(word)
    };
    for is_cut in [false, true] {
        let file = image(None);
        if is_cut {
            file.write_all_at(&[0; 4], CLUSTERS).unwrap();
        } else {
            file.write_all_at(&[0; 8], table(&file)).unwrap();
        }
        let error = Qcow2File::new(file.try_clone().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("does not count"), "{error}");
        assert!(Qcow2File::new(file, true).is_ok());
    }
}
