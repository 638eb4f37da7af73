//! `cloche-policy DIRECTORY OUTPUT`: writes the outer filter of every policy in a directory as `OUTPUT/NAME.filter`.
//!
//! Run when cloche is built; the inner filters are compiled into their programs by their build scripts.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use cloche_policy::{compile_file, Filter};

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    let [policies, output] = words.as_slice() else {
        eprintln!("cloche-policy: usage: cloche-policy DIRECTORY OUTPUT");
        return ExitCode::from(2);
    };
    match compile_all(policies.as_ref(), output.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloche-policy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compile_all(policies: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(output)?;
    for entry in fs::read_dir(policies)? {
        let path = entry?.path();
        if path.extension().is_none_or(|kind| kind != "toml") {
            continue;
        }
        let filter = compile_file(&path, Filter::Outer)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let name = path.with_extension("filter");
        let name = name.file_name().ok_or("a policy without a name")?;
        fs::write(output.join(name), filter)?;
    }
    Ok(())
}
