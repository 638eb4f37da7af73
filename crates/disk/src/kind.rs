//! The disk as a kind of device: its options, and how it is made of them.

use std::io;

use cloche_device::{Device, Inherited, Kind, Options, OptionsError, Reconnect, Syntax};

use crate::qcow2::Qcow2File;
use crate::raw::RawFile;
use crate::request::{Disk, MAX_ID};

/// The disk as a kind of device.
pub const KIND: Kind = Kind {
    name: "disk",
    syntax: Syntax {
        values: &["--tag", "--format"],
        flags: &["--readonly"],
        fds: &[IMAGE],
    },
    reconnect: Reconnect::AcceptAgain,
    read: |options| {
        let args = read_args(options)?;
        Ok(Box::new(|inherited| open(args, inherited)))
    },
};

const IMAGE: &str = "--image-fd";

#[derive(Clone, Copy)]
enum Format {
    Raw,
    Qcow2,
}

struct Args {
    format: Format,
    tag: String,
    is_readonly: bool,
}

fn read_args(options: &Options) -> Result<Args, OptionsError> {
    options.required(IMAGE, |text| text.parse::<u32>().ok())?;
    let format = options.optional("--format", |text| match text {
        "raw" => Some(Format::Raw),
        "qcow2" => Some(Format::Qcow2),
        _ => None,
    })?;
    Ok(Args {
        format: format.unwrap_or(Format::Raw),
        tag: options
            .optional("--tag", |text| {
                (text.len() <= MAX_ID).then(|| text.to_owned())
            })?
            .unwrap_or_default(),
        is_readonly: options.has("--readonly"),
    })
}

fn open(args: Args, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    outlive_limits()?;
    let file = inherited.take_file(IMAGE)?;
    let tag = args.tag.as_bytes();
    Ok(match args.format {
        Format::Raw => Box::new(Disk::new(RawFile::new(file, args.is_readonly)?, tag)),
        Format::Qcow2 => Box::new(Disk::new(Qcow2File::new(file, args.is_readonly)?, tag)),
    })
}

/// A write past the limit on how large files may become is an error that the guest is told, not the end of the process.
fn outlive_limits() -> io::Result<()> {
    // SAFETY: no handler is installed; the signal is ignored.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
