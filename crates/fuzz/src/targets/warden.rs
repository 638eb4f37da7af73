//! The warden's packets: what decodes encodes to the same bytes.

use cloche_proto::warden::{ToSupervisor, ToWarden};

pub fn run(data: &[u8]) {
    if let Ok(message) = ToWarden::decode(data) {
        assert_eq!(
            message.encode().expect("what was decoded can be encoded"),
            data
        );
    }
    if let Ok(message) = ToSupervisor::decode(data) {
        assert_eq!(
            message.encode().expect("what was decoded can be encoded"),
            data
        );
    }
}
