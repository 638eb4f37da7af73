//! The warden's packets with jails and what they are built of, its keeper's, and its answers: what decodes encodes to the same
//! bytes, so that two parsers cannot understand the same packet differently.

use cloche_proto::keeper::ToKeeper;
use cloche_proto::warden::{ToSupervisor, ToWarden};

pub fn run(data: &[u8]) {
    if let Ok(message) = ToWarden::decode(data) {
        assert_eq!(
            message.encode().expect("what was decoded can be encoded"),
            data
        );
    }
    if let Ok(message) = ToKeeper::decode(data) {
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
