//! `cloche-disk`: the disk of one guest, kept in a file that was opened before.

use std::io;
use std::process::ExitCode;

use cloche_device::{Device, Inherited, Options, OptionsError, Program, Reconnect, Syntax};
use cloche_disk::raw::RawFile;
use cloche_disk::request::{Disk, MAX_ID};

const IMAGE: &str = "--image-fd";

struct Args {
    tag: String,
    is_readonly: bool,
}

fn main() -> ExitCode {
    let program = Program {
        name: "cloche-disk",
        syntax: Syntax {
            values: &["--tag"],
            flags: &["--readonly"],
            fds: &[IMAGE],
        },
        filter: include_bytes!(concat!(env!("OUT_DIR"), "/inner.filter")),
        reconnect: Reconnect::AcceptAgain,
    };
    program.run(read_args, open)
}

fn read_args(options: &Options) -> Result<Args, OptionsError> {
    options.required(IMAGE, |text| text.parse::<u32>().ok())?;
    Ok(Args {
        tag: options
            .optional("--tag", |text| {
                (text.len() <= MAX_ID).then(|| text.to_owned())
            })?
            .unwrap_or_default(),
        is_readonly: options.has("--readonly"),
    })
}

fn open(args: Args, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    let file = inherited.take_file(IMAGE)?;
    let storage = RawFile::new(file, args.is_readonly)?;
    Ok(Box::new(Disk::new(storage, args.tag.as_bytes())))
}
