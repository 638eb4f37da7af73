//! The golden bytes in `protocol/vectors`, which the Python tests read, too.
//!
//! Each file is a list of `{"name", "hex", "fields"}`: `hex` is what goes over the wire (a frame; a control message
//! with its length; a packet of the warden's socket), `fields` what it says, named as on the specification's pages.
//! Bytes are hexadecimal strings; keys and nonces, which are hexadecimal digits themselves, stand as they are.
//!
//! `cargo test -p cloche-proto --test vectors -- --ignored` writes the files anew from the samples below.

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use cloche_proto::frame::{preface, Frame, Key, KEY_SIZE, PREFACE_SIZE};
use cloche_proto::keeper::ToKeeper;
use cloche_proto::message::{Assembler, ToAgent, ToHost, MAX_TO_AGENT};
use cloche_proto::warden::{ToSupervisor, ToWarden};
use serde_json::{json, Value};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../protocol/vectors")
        .join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len() % 2 == 0, "an odd number of digits");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// What one kind of wire item says, and its bytes made anew from what was decoded.
type Reading = fn(&[u8]) -> (Value, Vec<u8>);

fn read_frame(bytes: &[u8]) -> (Value, Vec<u8>) {
    if bytes.first() == Some(&0xC1) {
        assert_eq!(bytes.len(), PREFACE_SIZE);
        let key: Key = bytes[PREFACE_SIZE - KEY_SIZE..].try_into().unwrap();
        let text = String::from_utf8(key.to_vec()).unwrap();
        return (
            json!({"type": "PREFACE", "key": text}),
            preface(&key).to_vec(),
        );
    }
    let (frame, size) = Frame::decode(bytes).unwrap().unwrap();
    assert_eq!(size, bytes.len());
    let mut again = Vec::new();
    frame.encode(&mut again);
    (samples::frame_fields(&frame), again)
}

fn read_message(bytes: &[u8]) -> (Value, Vec<u8>) {
    let mut assembler = Assembler::new(MAX_TO_AGENT);
    assert_eq!(assembler.push(bytes), Ok(bytes.len()));
    let message = assembler.take().expect("a whole message");
    if message[0] < 64 {
        let message = ToAgent::decode(&message).unwrap();
        (
            samples::to_agent_fields(&message),
            message.encode().unwrap(),
        )
    } else {
        let message = ToHost::decode(&message).unwrap();
        (samples::to_host_fields(&message), message.encode().unwrap())
    }
}

fn read_packet(bytes: &[u8]) -> (Value, Vec<u8>) {
    if bytes[0] < 64 {
        let message = ToWarden::decode(bytes).unwrap();
        (
            samples::to_warden_fields(&message),
            message.encode().unwrap(),
        )
    } else {
        let message = ToSupervisor::decode(bytes).unwrap();
        (
            samples::to_supervisor_fields(&message),
            message.encode().unwrap(),
        )
    }
}

fn read_keeper(bytes: &[u8]) -> (Value, Vec<u8>) {
    let message = ToKeeper::decode(bytes).unwrap();
    (
        samples::to_keeper_fields(&message),
        message.encode().unwrap(),
    )
}

/// Reads a file, checks every vector both ways, and returns every `type` and `op` seen.
fn check(name: &str, read: Reading) -> BTreeSet<String> {
    let text = fs::read_to_string(file(name)).unwrap();
    let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        let bytes = unhex(vector["hex"].as_str().unwrap());
        let (fields, again) = read(&bytes);
        assert_eq!(fields, vector["fields"], "{name}");
        assert_eq!(hex(&again), vector["hex"].as_str().unwrap(), "{name}");
        collect_kinds(&fields, &mut seen);
    }
    seen
}

fn collect_kinds(value: &Value, seen: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if let (true, Value::String(kind)) = (key == "type" || key == "op", value) {
                    seen.insert(kind.clone());
                }
                collect_kinds(value, seen);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_kinds(item, seen)),
        _ => {}
    }
}

fn assert_covers(seen: &BTreeSet<String>, kinds: &str) {
    for kind in kinds.split_whitespace() {
        assert!(seen.contains(kind), "no vector for {kind}");
    }
}

/// Every frame type, and the preface, decodes to its fields and encodes to the same bytes.
#[test]
fn frames() {
    let seen = check("frames.json", read_frame);
    assert_covers(&seen, "PREFACE ATTACH ATTACHED DATA WINDOW EOF STOP");
}

/// Every control message and every step of SETUP decodes to its fields and encodes to the same bytes.
#[test]
fn messages() {
    let seen = check("messages.json", read_message);
    assert_covers(&seen, "SETUP EXEC SIGNAL RESIZE POWEROFF SYNC");
    assert_covers(
        &seen,
        "BIND_DEVICE MKDIR MOUNT SWITCH_ROOT WRITE_FILE SYMLINK COPY_TREE HOSTNAME CLOCK ENTROPY LOOPBACK SYSCTL \
         RLIMIT WAIT_PATH UNMOUNT FREEZE THAW",
    );
    assert_covers(
        &seen,
        "READY SETUP_DONE SETUP_FAILED STARTED FAILED EXITED STOPPED CONTINUED LOG SYNCED",
    );
}

/// Every message of the warden's socket and every root operation decodes to its fields and encodes to the same bytes.
#[test]
fn warden() {
    let seen = check("warden.json", read_packet);
    assert_covers(&seen, "SPAWN KILL SHUTDOWN MOUNT UNMOUNT");
    assert_covers(&seen, "READY SPAWNED FAILED EXITED DONE");
    assert_covers(&seen, "DIR BIND FILE SYMLINK TMPFS PROC DEV BIND_FD");
}

/// Every message of the keeper's socket decodes to its fields and encodes to the same bytes, and no other bytes do.
#[test]
fn keeper() {
    let seen = check("keeper.json", read_keeper);
    assert_covers(&seen, "RAW RESTORED");
    for (name, bytes) in samples::keeper() {
        let message = ToKeeper::decode(&bytes).unwrap();
        for end in 0..bytes.len() {
            assert!(ToKeeper::decode(&bytes[..end]).is_err(), "{name} cut");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_ne!(ToKeeper::decode(&damaged).as_ref(), Ok(&message), "{name}");
        }
        assert!(ToKeeper::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}

fn write(name: &str, items: &[(&str, Vec<u8>)], read: Reading) {
    let vectors: Vec<Value> = items
        .iter()
        .map(|(name, bytes)| json!({"name": name, "hex": hex(bytes), "fields": read(bytes).0}))
        .collect();
    let text = serde_json::to_string_pretty(&vectors).unwrap();
    fs::write(file(name), text + "\n").unwrap();
}

/// Writes the vectors from the samples. Only for a change of the protocol; the diff is to be read.
#[test]
#[ignore = "writes the files that the other tests check"]
fn write_the_vectors() {
    fs::create_dir_all(file("")).unwrap();
    write("frames.json", &samples::frames(), read_frame);
    write("messages.json", &samples::messages(), read_message);
    write("warden.json", &samples::packets(), read_packet);
    write("keeper.json", &samples::keeper(), read_keeper);
}
