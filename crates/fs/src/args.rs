//! The options of `cloche-fs`.

use cloche_device::{Options, OptionsError, Syntax};

use crate::backend::TAG_BYTES;
use crate::ids::Ids;

/// The option that names the socket of whoever tells a server of shares what was taken away.
pub const ORDERS: &str = "--orders";

/// All options beside those of every device.
pub const SYNTAX: Syntax = Syntax {
    values: &["--root", "--cache", "--ids", "--fd-limit", "--tag"],
    flags: &["--readonly"],
    fds: &[ORDERS],
};

/// How long the guest may believe what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// The tree does not change while it is served: believe everything for a day.
    Forever,
    /// The tree is changed by others too: their changes are seen within a second.
    Coherent,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Directory to serve.
    pub root: String,
    /// How long the guest may cache.
    pub cache: Cache,
    /// How owners are translated.
    pub ids: Ids,
    /// How many descriptors it may use; `None` is the hard limit of the process.
    pub fd_limit: Option<u64>,
    /// Refuse everything that writes.
    pub is_readonly: bool,
    /// Tag told by the device itself; `None` leaves it to the VMM.
    pub tag: Option<String>,
}

impl Args {
    /// Reads the options.
    ///
    /// # Errors
    /// Says which one is wrong; nothing has been opened by then.
    pub fn read(options: &Options) -> Result<Self, OptionsError> {
        Ok(Args {
            root: options.required("--root", parse_root)?,
            cache: options.required("--cache", parse_cache)?,
            ids: options.required("--ids", Ids::parse)?,
            fd_limit: options.optional("--fd-limit", |text| text.parse().ok())?,
            is_readonly: options.has("--readonly"),
            tag: options.optional("--tag", parse_tag)?,
        })
    }
}

fn parse_root(text: &str) -> Option<String> {
    text.starts_with('/').then(|| text.to_owned())
}

fn parse_cache(text: &str) -> Option<Cache> {
    match text {
        "forever" => Some(Cache::Forever),
        "coherent" => Some(Cache::Coherent),
        _ => None,
    }
}

fn parse_tag(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= TAG_BYTES).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(text: &str) -> Result<Args, OptionsError> {
        let words = text.split_whitespace().map(OsString::from);
        Options::parse(SYNTAX, words).and_then(|options| Args::read(&options))
    }

    #[test]
    fn a_whole_command_line_is_understood() {
        let text =
            "--fd 3 --root / --cache forever --ids squash-root --fd-limit 4096 --readonly --tag a";
        let args = parse(text).unwrap();
        assert_eq!((args.root.as_str(), args.cache), ("/", Cache::Forever));
        assert_eq!((args.ids, args.fd_limit), (Ids::SquashRoot, Some(4096)));
        assert_eq!((args.is_readonly, args.tag.as_deref()), (true, Some("a")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            parse("--fd 3 --root /"),
            Err(OptionsError::Required("--cache"))
        );
        for wrong in [
            "--root here",
            "--root / --cache never",
            "--root / --cache forever --ids 3",
            "--root / --cache forever --ids host --fd-limit x",
            "--root / --cache forever --ids host --tag",
        ] {
            assert!(parse(&format!("--fd 3 {wrong}")).is_err(), "{wrong}");
        }
    }
}
