//! Policies of system calls: what a process may ask of the kernel, with the reason beside each call.
//!
//! A policy (`policies/NAME.toml`) has two lists. `always` is what the process needs to do its work; `start` what it needs
//! only until it is ready. Two filters are made of them: the outer one allows both and is put on by the warden before the
//! exec; the inner one allows `always` alone and is put on by the process itself once it is ready. Every other call, and
//! every call of another architecture, kills the process. This runs when cloche is built, never when it starts something.
//!
//! A program whose calls cannot be listed (an interpreter that the user's own words drive) has one list instead, `never`: what
//! it never needs. Its one filter answers these as a kernel does that has no such call, and allows the rest.

mod bpf;
mod compile;
mod conditions;
mod constants;
mod error;
mod grammar;
mod rules;

use std::path::Path;

pub use compile::{compile, compile_file};
pub use error::PolicyError;

use crate::grammar::read;

/// Which of a policy's two filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Put on from outside, before the exec.
    Outer,
    /// Put on from inside, when the process is ready.
    Inner,
}

/// For the build script of a program: compiles `policies/NAME.toml`, and writes the inner filter to `OUT_DIR`.
///
/// # Panics
/// When there is no such policy or it is wrong: the build ends with the reason.
pub fn build(name: &str) {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let path = policies.join(format!("{name}.toml"));
    let fail = |error: PolicyError| -> ! { panic!("{}: {error}", path.display()) };
    let bases = read(&path).unwrap_or_else(|error| fail(error)).extends;
    for name in bases.names().iter().map(String::as_str).chain([name]) {
        let path = policies.join(format!("{name}.toml"));
        println!("cargo:rerun-if-changed={}", path.display());
    }
    let filter = compile_file(&path, Filter::Inner).unwrap_or_else(|error| fail(error));
    let output = std::env::var_os("OUT_DIR").unwrap_or_default();
    let output = Path::new(&output).join("inner.filter");
    std::fs::write(&output, filter).unwrap_or_else(|error| panic!("{}: {error}", output.display()));
}
