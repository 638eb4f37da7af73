//! The disk as a kind of device: its options, and how it is made of them.

use std::io;

use cloche_device::{Device, Inherited, Kind, Options, OptionsError, Reconnect, Syntax};

use crate::qcow2::Qcow2File;
use crate::raw::RawFile;
use crate::request::{Disk, MAX_ID};
use crate::undo::Revertible;

/// The disk as a kind of device.
pub const KIND: Kind = Kind {
    name: "disk",
    syntax: Syntax {
        values: &["--tag", "--format", UNDO_BYTES],
        flags: &["--readonly", GROWS],
        fds: &[IMAGE, UNDO],
    },
    reconnect: Reconnect::AcceptAgain,
    read: |options| {
        let args = read_args(options)?;
        Ok(Box::new(|inherited| open(args, inherited)))
    },
};

const IMAGE: &str = "--image-fd";
/// The file of the undo log, and how large that may become; for a raw image that is written to.
const UNDO: &str = "--undo-fd";
const UNDO_BYTES: &str = "--undo-bytes";

/// The file may have been made larger when the process is started anew: the guest is told.
const GROWS: &str = "--grows";

#[derive(Clone, Copy)]
enum Format {
    Raw,
    Qcow2,
}

struct Args {
    format: Format,
    tag: String,
    is_readonly: bool,
    is_growing: bool,
    undo_bytes: Option<u64>,
}

fn read_args(options: &Options) -> Result<Args, OptionsError> {
    options.required(IMAGE, |text| text.parse::<u32>().ok())?;
    let format = options.optional("--format", |text| match text {
        "raw" => Some(Format::Raw),
        "qcow2" => Some(Format::Qcow2),
        _ => None,
    })?;
    let format = format.unwrap_or(Format::Raw);
    let is_readonly = options.has("--readonly");
    let can_be_undone = matches!(format, Format::Raw) && !is_readonly;
    let undo_fd = options.optional(UNDO, |text| {
        text.parse::<u32>().ok().filter(|_| can_be_undone)
    })?;
    let undo_bytes = |text: &str| text.parse().ok().filter(|_| undo_fd.is_some());
    Ok(Args {
        format,
        tag: options
            .optional("--tag", |text| {
                (text.len() <= MAX_ID).then(|| text.to_owned())
            })?
            .unwrap_or_default(),
        is_readonly,
        is_growing: options.has(GROWS),
        undo_bytes: match undo_fd {
            Some(_) => Some(options.required(UNDO_BYTES, undo_bytes)?),
            None => options.optional(UNDO_BYTES, undo_bytes)?,
        },
    })
}

fn open(args: Args, inherited: &mut Inherited) -> io::Result<Box<dyn Device>> {
    outlive_limits()?;
    let file = inherited.take_file(IMAGE)?;
    let tag = args.tag.as_bytes();
    Ok(match args.format {
        Format::Raw => {
            let disk = RawFile::new(file, args.is_readonly)?;
            match args.undo_bytes {
                None => Box::new(Disk::new(disk, tag).growing(args.is_growing)),
                Some(most_bytes) => {
                    let log = inherited.take_file(UNDO)?;
                    let disk = Revertible::new(disk, log, most_bytes)?;
                    Box::new(Disk::new(disk, tag).growing(args.is_growing))
                }
            }
        }
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
