//! A directory that is served, with a secret beside it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory that is served, and what lies beside it.
pub struct Scratch {
    pub path: PathBuf,
    /// Another one every time, so that no input can have it.
    pub secret: Vec<u8>,
}

impl Scratch {
    pub fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("cloche-fuzz-{name}-{}", std::process::id()));
        let mut secret = vec![0; 16];
        // SAFETY: the kernel writes at most as many bytes as there is room for.
        let got = unsafe { libc::getrandom(secret.as_mut_ptr().cast(), secret.len(), 0) };
        assert_eq!(usize::try_from(got), Ok(secret.len()));
        let scratch = Scratch { path, secret };
        scratch.remove();
        let served = scratch.served();
        fs::create_dir_all(served.join("dir/inner")).expect("a directory");
        fs::write(served.join("file"), b"text").expect("a file");
        fs::write(served.join("dir/other"), vec![b'x'; 5000]).expect("a file");
        fs::write(scratch.path.join("secret"), &scratch.secret).expect("a file");
        symlink("../secret", served.join("link")).expect("a link");
        symlink(scratch.path.join("secret"), served.join("whole")).expect("a link");
        symlink("..", served.join("up")).expect("a link");
        scratch
    }

    pub fn served(&self) -> PathBuf {
        self.path.join("served")
    }

    /// Everything beside what is served, as far as anybody could change it.
    pub fn beside(&self) -> BTreeMap<PathBuf, (u32, u64, u32, i64, i64)> {
        let listing = fs::read_dir(&self.path).expect("it is there");
        listing
            .map(|entry| {
                let path = entry.expect("it is readable").path();
                let found = fs::symlink_metadata(&path).expect("it is there");
                let changed = if path == self.served() {
                    (0, 0, 0, 0, 0)
                } else {
                    let (sec, nsec) = (found.ctime(), found.ctime_nsec());
                    (found.mode(), found.nlink(), found.uid(), sec, nsec)
                };
                (path, changed)
            })
            .collect()
    }

    /// Everything that is served.
    pub fn inside(&self) -> Vec<(PathBuf, u32, u64, i64, i64)> {
        let mut found = Vec::new();
        let mut left = vec![self.served()];
        while let Some(path) = left.pop() {
            let data = fs::symlink_metadata(&path).expect("it is there");
            if data.is_dir() {
                let listing = fs::read_dir(&path).expect("it is readable");
                left.extend(listing.map(|entry| entry.expect("it is readable").path()));
            }
            let (sec, nsec) = (data.ctime(), data.ctime_nsec());
            found.push((path, data.mode(), data.size(), sec, nsec));
        }
        found.sort();
        found
    }

    fn remove(&self) {
        fn open_up(path: &Path) {
            let is_dir = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
            if !is_dir {
                return;
            }
            let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                open_up(&entry.path());
            }
        }
        open_up(&self.path);
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}
