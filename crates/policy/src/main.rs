//! `cloche-policy DIRECTORY OUTPUT`: writes the outer filter of every policy in a directory as `OUTPUT/NAME.filter`.
//!
//! Run when cloche is built; the inner filters are compiled into their programs by their build scripts. Copies of them
//! (`OUTPUT/NAME.inner.filter`) tell `cloche audit` how many calls they allow; nothing is started with them.

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
        for (filter, extension) in [(Filter::Outer, "filter"), (Filter::Inner, "inner.filter")] {
            let program = compile_file(&path, filter)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.with_extension(extension);
            let name = name.file_name().ok_or("a policy without a name")?;
            fs::write(output.join(name), program)?;
        }
    }
    Ok(())
}
