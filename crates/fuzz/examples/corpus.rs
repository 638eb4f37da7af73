//! Between the committed seeds and the directories of files that libFuzzer works with; see `tools/fuzz`.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use cloche_fuzz::{seeds, Target, TARGETS};

fn main() -> io::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => TARGETS
            .iter()
            .for_each(|target| println!("{}", target.name)),
        ["longest", name] => println!("{}", find(name)?.max_input),
        ["unpack", name, directory] => unpack(find(name)?, Path::new(directory))?,
        ["pack", name, directory, most] => {
            let most = most.parse().map_err(io::Error::other)?;
            pack(find(name)?, Path::new(directory), most)?;
        }
        _ => {
            eprintln!("corpus list | longest TARGET | unpack TARGET DIR | pack TARGET DIR BYTES");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find(name: &str) -> io::Result<&'static Target> {
    Target::find(name).ok_or_else(|| io::Error::other(format!("there is no target {name}")))
}

/// Writes each seed into a file of its own.
fn unpack(target: &Target, directory: &Path) -> io::Result<()> {
    for seed in seeds(target) {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        fs::write(directory.join(format!("{:016x}", hasher.finish())), &seed)?;
    }
    Ok(())
}

/// Adds inputs to the committed ones: at most `most` bytes, of short and of long ones evenly.
fn pack(target: &Target, directory: &Path, most: usize) -> io::Result<()> {
    let known = seeds(target);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let input = fs::read(entry?.path())?;
        if !known.contains(&input) && !input.is_empty() {
            inputs.push(input);
        }
    }
    inputs.sort_by_key(|input| (input.len(), input.clone()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target.name);
    let mut lines = fs::read_to_string(&path)?;
    let size = |step: usize| -> usize { inputs.iter().step_by(step).map(Vec::len).sum() };
    let step = (1..).find(|step| size(*step) <= most || *step > inputs.len());
    for input in inputs.iter().step_by(step.unwrap_or(1)) {
        lines.extend(input.iter().map(|byte| format!("{byte:02x}")));
        lines.push('\n');
    }
    fs::write(path, lines)
}
