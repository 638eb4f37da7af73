use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{chown as chown_path, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use virtiofsd::filesystem::{FsOptions, SetxattrFlags};
use virtiofsd::soft_idmap::Id;

use super::*;
use crate::request::Scope;

thread_local! {
    /// The mutant: entries are told with their full lifetime however few descriptors are left.
    pub static IS_UNBOUNDED: Cell<bool> = const { Cell::new(false) };
}

const FD_LIMIT: u64 = 512;

/// Tests that use up descriptors, or count those of the process, take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cloche-fs-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn own() -> (u32, u32) {
    // SAFETY: these two calls cannot fail and touch no memory.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

fn share(root: &Path, ids: Ids) -> ShareFs {
    let config = ShareConfig {
        root: root.to_str().unwrap().into(),
        ids,
        fd_limit: FD_LIMIT,
        is_readonly: false,
    };
    let share = ShareFs::new(&config).unwrap();
    share.init(FsOptions::all()).unwrap();
    share
}

fn caller() -> Ids {
    Ids::Caller {
        uid: 1000,
        gid: 1000,
    }
}

fn ctx() -> Context {
    Context {
        uid: 0.into(),
        gid: 0.into(),
        pid: 1,
    }
}

fn name(number: usize) -> CString {
    CString::new(format!("f{number:05}")).unwrap()
}

/// A guest kernel as far as entries go: at the last use of an entry it keeps it if its lifetime is not over yet, and
/// otherwise forgets the inode.
struct Guest {
    share: ShareFs,
    cached: HashMap<(u64, CString), u64>,
}

impl Guest {
    fn new(share: ShareFs) -> Self {
        Guest {
            share,
            cached: HashMap::new(),
        }
    }

    /// Looks a name up, uses it once, lets go of it.
    fn touch(&mut self, parent: u64, name: &CStr) -> io::Result<()> {
        let place = (parent, name.to_owned());
        if self.cached.contains_key(&place) {
            return Ok(());
        }
        let entry = self.share.lookup(ctx(), parent, name)?;
        self.share.getattr(ctx(), entry.inode, None)?;
        if entry.entry_timeout.is_zero() {
            self.share.forget(ctx(), entry.inode, 1);
        } else {
            self.cached.insert(place, entry.inode);
        }
        Ok(())
    }
}

fn open_fds() -> u64 {
    fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

fn touch_all(guest: &mut Guest, files: usize) -> io::Result<u64> {
    let mut most = 0;
    for number in 0..files {
        guest.touch(ROOT, &name(number))?;
        if number % 100 == 0 {
            most = most.max(open_fds());
        }
    }
    Ok(most)
}

#[test]
fn twenty_thousand_files_fit_into_512_descriptors() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const FILES: usize = 20_000;
    let scratch = Scratch::new("bound");
    for number in 0..FILES {
        fs::write(scratch.path().join(name(number).to_str().unwrap()), b"").unwrap();
    }
    let mut guest = Guest::new(share(scratch.path(), caller()));
    for _ in 0..2 {
        let most = touch_all(&mut guest, FILES).unwrap();
        assert!(most < FD_LIMIT, "{most} descriptors were open");
    }
    assert!(
        guest.cached.len() > 100,
        "what was cached early stays cached"
    );

    IS_UNBOUNDED.set(true);
    let mut guest = Guest::new(share(scratch.path(), caller()));
    let error = touch_all(&mut guest, FILES).unwrap_err();
    IS_UNBOUNDED.set(false);
    assert_eq!(
        error.raw_os_error(),
        Some(libc::ENFILE),
        "without the rule the descriptors run out"
    );
}

#[test]
fn open_files_may_use_up_the_rest_and_then_are_refused() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new("handles");
    fs::write(scratch.path().join("file"), b"").unwrap();
    let share = share(scratch.path(), caller());
    let inode = share.lookup(ctx(), ROOT, c"file").unwrap().inode;
    let mut handles = Vec::new();
    let error = loop {
        match share.open(ctx(), inode, false, libc::O_RDONLY as u32) {
            Ok((handle, _)) => handles.push(handle.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    assert!(handles.len() as u64 > FD_LIMIT / 2);
    assert!(share
        .lookup(ctx(), ROOT, c"file")
        .unwrap()
        .entry_timeout
        .is_zero());
    for handle in handles {
        share
            .release(ctx(), inode, 0, handle, false, false, None)
            .unwrap();
    }
    assert!(share
        .open(ctx(), inode, false, libc::O_RDONLY as u32)
        .is_ok());
}

#[test]
fn a_listing_carries_no_attributes_once_descriptors_are_scarce() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new("listing");
    for number in 0..FD_LIMIT as usize {
        fs::write(scratch.path().join(name(number).to_str().unwrap()), b"").unwrap();
    }
    let share = share(scratch.path(), caller());
    let scope = Scope::enter(true);
    let told = (0..FD_LIMIT as usize)
        .filter(|number| share.lookup(ctx(), ROOT, &name(*number)).unwrap().inode != 0);
    assert_eq!(told.count() as u64, (FD_LIMIT - RESERVED_FDS) / 8 * 3 + 1);
    drop(scope);
    assert_ne!(share.lookup(ctx(), ROOT, &name(400)).unwrap().inode, 0);
}

#[test]
fn the_last_of_what_stays_is_kept_for_directories() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new("directories");
    for number in 0..FD_LIMIT as usize {
        fs::create_dir(scratch.path().join(name(number).to_str().unwrap())).unwrap();
    }
    fs::write(scratch.path().join("file"), b"").unwrap();
    let share = share(scratch.path(), caller());
    let mut lifetimes = (0..FD_LIMIT as usize).map(|number| {
        share
            .lookup(ctx(), ROOT, &name(number))
            .unwrap()
            .entry_timeout
    });
    let few = (FD_LIMIT - RESERVED_FDS) / 8 * 3;
    assert!(lifetimes
        .by_ref()
        .take(few as usize)
        .all(|lifetime| lifetime == LIFETIME));
    let file = share.lookup(ctx(), ROOT, c"file").unwrap();
    assert_eq!(file.entry_timeout, Duration::ZERO);
    share.forget(ctx(), file.inode, 1);
    assert_eq!(lifetimes.next(), Some(LIFETIME));
    // At half of the descriptors it ends for directories, too: the other half is for open files.
    let rest = (FD_LIMIT - RESERVED_FDS) / 8 - 1;
    assert!(lifetimes
        .by_ref()
        .take(rest as usize)
        .all(|lifetime| lifetime == LIFETIME));
    assert_eq!(lifetimes.next(), Some(Duration::ZERO));
}

#[test]
fn names_do_not_lead_out_of_the_share() {
    let scratch = Scratch::new("names");
    fs::create_dir(scratch.path().join("inner")).unwrap();
    fs::write(scratch.path().join("secret"), b"").unwrap();
    let share = share(&scratch.path().join("inner"), caller());
    for bad in [c"..", c".", c"", c"../secret", c"/etc", c"a/b"] {
        let refused = [
            share.lookup(ctx(), ROOT, bad).err(),
            share.unlink(ctx(), ROOT, bad).err(),
            share.rmdir(ctx(), ROOT, bad).err(),
            share
                .mkdir(ctx(), ROOT, bad, 0o755, 0, Extensions::default())
                .err(),
            share
                .mknod(
                    ctx(),
                    ROOT,
                    bad,
                    libc::S_IFREG | 0o644,
                    0,
                    0,
                    Extensions::default(),
                )
                .err(),
            share
                .symlink(ctx(), c"x", ROOT, bad, Extensions::default())
                .err(),
            share.link(ctx(), ROOT, ROOT, bad).err(),
            share.rename(ctx(), ROOT, bad, ROOT, c"here", 0).err(),
            share.rename(ctx(), ROOT, c"here", ROOT, bad, 0).err(),
            share
                .create(ctx(), ROOT, bad, 0o644, false, 0, 0, Extensions::default())
                .err(),
        ];
        for error in refused {
            assert_eq!(error.unwrap().raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
    }
    assert!(scratch.path().join("secret").exists());
}

#[test]
fn devices_are_refused_and_whiteouts_are_not() {
    assert!(check_mknod(libc::S_IFCHR, 0x103).is_err());
    assert!(check_mknod(libc::S_IFBLK, 0x800).is_err());
    assert!(check_mknod(libc::S_IFBLK, 0).is_err());
    assert!(check_mknod(libc::S_IFCHR, 0).is_ok());
    assert!(check_mknod(libc::S_IFIFO, 0).is_ok());
    assert!(check_mknod(0o644, 0).is_ok());
}

fn chown(share: &ShareFs, inode: u64, uid: u32, gid: u32) -> io::Result<Attr> {
    let attr = SetattrIn {
        uid: uid.into(),
        gid: gid.into(),
        ..Default::default()
    };
    let valid = SetattrValid::UID | SetattrValid::GID;
    share
        .setattr(ctx(), inode, attr, None, valid)
        .map(|(attr, _)| attr)
}

#[test]
fn giving_an_own_file_away_succeeds_changes_nothing_and_takes_set_id_bits() {
    let scratch = Scratch::new("chown");
    let share = share(scratch.path(), caller());
    let extensions = Extensions {
        sup_gids: vec![5.into()],
        ..Default::default()
    };
    let (entry, _, _) = share
        .create(ctx(), ROOT, c"file", 0o4755, false, 2, 0, extensions)
        .unwrap();
    assert_eq!(
        (entry.attr.uid.into_inner(), entry.attr.gid.into_inner()),
        (1000, 1000)
    );
    let attr = chown(&share, entry.inode, 33, 33).unwrap();
    assert_eq!((attr.uid.into_inner(), attr.gid.into_inner()), (1000, 1000));
    assert_eq!(attr.mode & 0o7777, 0o755);
    let stat = fs::metadata(scratch.path().join("file")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), own());
}

#[test]
fn giving_away_what_belongs_to_another_is_refused() {
    let scratch = Scratch::new("others");
    let file = scratch.path().join("file");
    fs::write(&file, b"").unwrap();
    // Only root can make a file of somebody else's; for everybody else the root directory is one.
    let (root, name) = match chown_path(&file, Some(12345), Some(12345)) {
        Ok(()) => (scratch.path(), c"file"),
        Err(_) => (Path::new("/"), c"usr"),
    };
    let share = share(root, caller());
    let entry = share.lookup(ctx(), ROOT, name).unwrap();
    assert_eq!(entry.attr.uid.into_inner(), NOBODY);
    let error = chown(&share, entry.inode, 1000, 1000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let scratch = Scratch::new("readonly");
    fs::write(scratch.path().join("file"), b"text").unwrap();
    let config = ShareConfig {
        root: scratch.path().to_str().unwrap().into(),
        ids: caller(),
        fd_limit: FD_LIMIT,
        is_readonly: true,
    };
    let share = ShareFs::new(&config).unwrap();
    share.init(FsOptions::all()).unwrap();
    let inode = share.lookup(ctx(), ROOT, c"file").unwrap().inode;
    let refused = [
        share.open(ctx(), inode, false, libc::O_RDWR as u32).err(),
        share.open(ctx(), inode, false, libc::O_TRUNC as u32).err(),
        share
            .create(
                ctx(),
                ROOT,
                c"new",
                0o644,
                false,
                1,
                0,
                Extensions::default(),
            )
            .err(),
        share.unlink(ctx(), ROOT, c"file").err(),
        share.rename(ctx(), ROOT, c"file", ROOT, c"other", 0).err(),
        share
            .setxattr(ctx(), inode, c"user.a", b"", 0, SetxattrFlags::empty())
            .err(),
        share.removexattr(ctx(), inode, c"user.a").err(),
        share.fallocate(ctx(), inode, 0, 0, 0, 1).err(),
        share
            .setattr(ctx(), inode, SetattrIn::default(), None, SetattrValid::MODE)
            .err(),
    ];
    for error in refused {
        assert_eq!(error.unwrap().raw_os_error(), Some(libc::EROFS));
    }
    assert!(share
        .open(ctx(), inode, false, libc::O_RDONLY as u32)
        .is_ok());
}

#[test]
fn only_harmless_extended_attributes_exist() {
    let scratch = Scratch::new("xattr");
    fs::write(scratch.path().join("file"), b"").unwrap();
    let share = share(scratch.path(), caller());
    let inode = share.lookup(ctx(), ROOT, c"file").unwrap().inode;
    for refused in [
        c"trusted.overlay.opaque",
        c"system.posix_acl_access",
        c"security.selinux",
        c"security.ima",
    ] {
        let error = share
            .setxattr(ctx(), inode, refused, b"x", 0, SetxattrFlags::empty())
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{refused:?}");
        assert!(share.getxattr(ctx(), inode, refused, 16).is_err());
    }
    assert_eq!(
        known_names(b"user.a\0security.selinux\0security.capability\0"),
        b"user.a\0security.capability\0"
    );
}

#[test]
fn a_name_that_does_not_exist_is_remembered_for_a_moment() {
    let scratch = Scratch::new("absent");
    let share = share(scratch.path(), caller());
    let entry = share.lookup(ctx(), ROOT, c"missing").unwrap();
    assert_eq!((entry.inode, entry.entry_timeout), (0, ABSENCE));
    assert_eq!(share.held_fds(), 0);
}

#[test]
fn a_share_that_was_let_go_is_stale_to_a_guest_that_keeps_its_numbers() {
    let scratch = Scratch::new("let-go");
    for place in ["7", "8"] {
        fs::create_dir_all(scratch.path().join(place).join("inner")).unwrap();
        fs::write(scratch.path().join(place).join("inner/file"), b"text").unwrap();
    }
    let share = share(scratch.path(), caller());
    let walk = |place: &CStr| {
        let top = share.lookup(ctx(), ROOT, place).unwrap().inode;
        let inner = share.lookup(ctx(), top, c"inner").unwrap().inode;
        let file = share.lookup(ctx(), inner, c"file").unwrap().inode;
        let (handle, _) = share.open(ctx(), file, false, libc::O_RDWR as u32).unwrap();
        (top, inner, file, handle.unwrap())
    };
    let (top, inner, file, handle) = walk(c"7");
    let (_, _, other, other_handle) = walk(c"8");
    assert_eq!(share.let_go(b"7").unwrap(), 4);
    let errno = |error: io::Error| error.raw_os_error();
    for inode in [top, inner, file] {
        let refused = share.getattr(ctx(), inode, None).map(drop);
        assert_eq!(refused.map_err(errno), Err(Some(libc::ESTALE)));
    }
    let refused = share.lookup(ctx(), inner, c"file").map(drop);
    assert_eq!(refused.map_err(errno), Err(Some(libc::ESTALE)));
    for inode in [file, other] {
        assert!(share.fsync(ctx(), inode, false, handle).is_err());
    }
    assert!(share.fsync(ctx(), other, false, other_handle).is_ok());
    assert_eq!(share.held_fds(), 4);
    assert_eq!(share.let_go(b"7").unwrap(), 0);
}
