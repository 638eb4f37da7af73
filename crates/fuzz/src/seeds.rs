//! What a target is begun with: the committed inputs, the golden vectors, the policies themselves.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Target;

/// All seeds of a target.
///
/// `fuzz/seeds/NAME` has one input on each line, in hexadecimal digits; lines that begin with `#` are comments. What was
/// found once stays there.
///
/// # Panics
/// When a file cannot be read: this is for tests.
#[must_use]
pub fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let mut seeds = committed(target.name);
    match target.name {
        "frame" => seeds.extend(vectors("frames", 0)),
        "message" => seeds.extend(vectors("messages", 4)),
        "agent" => seeds.extend(vectors("messages", 0)),
        "warden" => {
            seeds.extend(vectors("warden", 0));
            seeds.extend(vectors("keeper", 0));
        }
        "policy" => seeds.extend(policies()),
        "qcow2" => seeds.extend(crate::targets::qcow2::samples()),
        _ => {}
    }
    seeds.retain(|seed| seed.len() <= target.max_input);
    seeds
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn committed(name: &str) -> Vec<Vec<u8>> {
    let path = project("fuzz/seeds").join(name);
    let lines = read(&path);
    let lines = lines.lines().filter(|line| !line.starts_with('#'));
    lines.map(unhex).collect()
}

/// The golden vectors of a file, without the `skip` bytes before each that belong to another layer.
fn vectors(file: &str, skip: usize) -> Vec<Vec<u8>> {
    let path = project("protocol/vectors")
        .join(file)
        .with_extension("json");
    let vectors: serde_json::Value = serde_json::from_str(&read(&path)).expect("vectors are JSON");
    let vectors = vectors.as_array().expect("vectors are a list");
    vectors
        .iter()
        .filter_map(|vector| {
            unhex(vector["hex"].as_str()?)
                .get(skip..)
                .map(<[u8]>::to_vec)
        })
        .collect()
}

/// The policies, behind the byte that says that what follows is one.
fn policies() -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(project("policies"))
        .expect("there are policies")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| [b"\0", read(path).as_bytes()].concat())
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits
        .map(|pair| {
            let text = std::str::from_utf8(pair).expect("hexadecimal digits");
            u8::from_str_radix(text, 16).expect("hexadecimal digits")
        })
        .collect()
}
