//! The warden's packets, and its keeper's: what decodes encodes to the same bytes.
#![no_main]

use cloche_proto::keeper::ToKeeper;
use cloche_proto::warden::{ToSupervisor, ToWarden};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = ToWarden::decode(data) {
        assert_eq!(message.encode().expect("what was decoded can be encoded"), data);
    }
    if let Ok(message) = ToKeeper::decode(data) {
        assert_eq!(message.encode().expect("what was decoded can be encoded"), data);
    }
    if let Ok(message) = ToSupervisor::decode(data) {
        assert_eq!(message.encode().expect("what was decoded can be encoded"), data);
    }
});
