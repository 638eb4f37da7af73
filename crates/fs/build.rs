//! Compiles the filter that the program puts on itself, and links libcap-ng, which the virtiofsd crate needs, into a static binary.
//!
//! The capng crate asks for a library by name and so gets the shared one, unless an environment variable says otherwise. A
//! static binary that was linked with a shared library in sight crashes at its start. So the archive alone is put into a
//! directory that is searched first.

use std::env;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHIVE: &str = "libcap-ng.a";

fn main() {
    cloche_policy::build("cloche-fs");
    println!("cargo:rerun-if-changed=build.rs");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        return;
    }
    let archive = find_archive()
        .unwrap_or_else(|| panic!("{ARCHIVE} is missing: install the package libcap-ng-dev"));
    let directory = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("archive");
    let link = directory.join(ARCHIVE);
    if !link.exists() {
        std::fs::create_dir_all(&directory)
            .and_then(|()| symlink(&archive, &link))
            .unwrap_or_else(|error| {
                panic!("{}: {error}", link.display());
            });
    }
    println!("cargo:rustc-link-search=native={}", directory.display());
}

/// Where the C compiler finds the archive.
fn find_archive() -> Option<PathBuf> {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={ARCHIVE}"))
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    let path = Path::new(path.trim_end());
    path.is_absolute().then(|| path.to_path_buf())
}
