//! Every target of `crates/fuzz`, guided by coverage: one program, because most of what is compiled is shared by all of them.
//! `CLOCHE_FUZZ_TARGET` names the one that runs.
#![no_main]

use std::sync::LazyLock;

use cloche_fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("CLOCHE_FUZZ_TARGET").expect("CLOCHE_FUZZ_TARGET names a target");
    Target::find(&name).expect("CLOCHE_FUZZ_TARGET names a target")
});

fuzz_target!(|data: &[u8]| TARGET.throw(data));
