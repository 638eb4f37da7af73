//! The end of a domain's cgroup: an empty directory of the kernel's, which the outer process outlives the domain to remove.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Removes the cgroup that the supervisor has made for this warden, if there is one, when all its processes are gone.
///
/// It is called after this process (`host/cgroups.py`), in one of those that this process is in itself. Whatever cannot
/// be removed stays for the next command's sweep: there is nobody to tell.
pub fn remove() {
    let Ok(text) = fs::read_to_string("/proc/self/cgroup") else {
        return;
    };
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return;
    };
    let name = format!("cloche-{}", std::process::id());
    for above in Path::new(own).ancestors() {
        let group = PathBuf::from(ROOT).join(above).join(&name);
        // A cgroup's files go with it, and rmdir(2) refuses them: what goes here are the cgroups below.
        for entry in fs::read_dir(&group).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&group);
    }
}
