//! The command line of `cloche-fs`.

use std::ffi::OsString;
use std::os::unix::io::RawFd;

use thiserror::Error;

use crate::ids::Ids;

/// What a wrong command line is answered with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// An option that does not exist.
    #[error("unknown option {0}")]
    Unknown(String),
    /// An option that needs a value came last.
    #[error("{0} needs a value")]
    MissingValue(&'static str),
    /// A value that cannot be understood.
    #[error("{option} does not take {value:?}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// An option without which the server cannot start.
    #[error("{0} is required")]
    Required(&'static str),
}

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
    /// Listening Unix socket, inherited.
    pub socket_fd: RawFd,
    /// Directory to serve.
    pub root: String,
    /// How long the guest may cache.
    pub cache: Cache,
    /// How owners are translated.
    pub ids: Ids,
    /// Wanted limit of open descriptors; `None` is the hard limit of the process.
    pub fd_limit: Option<u64>,
    /// Refuse everything that writes.
    pub is_readonly: bool,
    /// Tag told by the device itself; `None` leaves it to the VMM.
    pub tag: Option<String>,
    /// Worker threads; 0 answers requests in the thread that takes them from the queue.
    pub threads: usize,
    /// What is written to stderr.
    pub log_level: log::LevelFilter,
}

impl Args {
    /// Parses the words after the program's name.
    ///
    /// # Errors
    /// Says which word is wrong; nothing has been opened by then.
    pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut words = words.map(|word| word.to_string_lossy().into_owned());
        let mut socket_fd = None;
        let mut root = None;
        let mut cache = None;
        let mut ids = None;
        let mut args = Args {
            socket_fd: -1,
            root: String::new(),
            cache: Cache::Coherent,
            ids: Ids::Host,
            fd_limit: None,
            is_readonly: false,
            tag: None,
            threads: 0,
            log_level: log::LevelFilter::Warn,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fd" => socket_fd = Some(value("--fd", &mut words, parse_fd)?),
                "--root" => root = Some(value("--root", &mut words, parse_root)?),
                "--cache" => cache = Some(value("--cache", &mut words, parse_cache)?),
                "--ids" => ids = Some(value("--ids", &mut words, Ids::parse)?),
                "--fd-limit" => {
                    args.fd_limit = Some(value("--fd-limit", &mut words, |text| text.parse().ok())?)
                }
                "--readonly" => args.is_readonly = true,
                "--tag" => args.tag = Some(value("--tag", &mut words, parse_tag)?),
                "--threads" => args.threads = value("--threads", &mut words, parse_threads)?,
                "--log-level" => {
                    args.log_level = value("--log-level", &mut words, |text| text.parse().ok())?
                }
                _ => return Err(ArgsError::Unknown(word)),
            }
        }
        args.socket_fd = socket_fd.ok_or(ArgsError::Required("--fd"))?;
        args.root = root.ok_or(ArgsError::Required("--root"))?;
        args.cache = cache.ok_or(ArgsError::Required("--cache"))?;
        args.ids = ids.ok_or(ArgsError::Required("--ids"))?;
        Ok(args)
    }
}

fn value<T>(
    option: &'static str,
    words: &mut impl Iterator<Item = String>,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ArgsError> {
    let text = words.next().ok_or(ArgsError::MissingValue(option))?;
    parse(&text).ok_or(ArgsError::BadValue {
        option,
        value: text,
    })
}

fn parse_fd(text: &str) -> Option<RawFd> {
    text.parse().ok().filter(|fd| *fd >= 0)
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
    (!text.is_empty() && text.len() <= virtiofsd::vhost_user::MAX_TAG_LEN).then(|| text.to_owned())
}

fn parse_threads(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| *count <= 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Args, ArgsError> {
        Args::parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_whole_command_line_is_understood() {
        let args = parse("--fd 3 --root / --cache forever --ids squash-root --fd-limit 4096 --readonly --threads 2").unwrap();
        assert_eq!(
            (args.socket_fd, args.root.as_str(), args.cache),
            (3, "/", Cache::Forever)
        );
        assert_eq!(
            (args.ids, args.fd_limit, args.threads),
            (Ids::SquashRoot, Some(4096), 2)
        );
        assert!(args.is_readonly);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("--fd"), Err(ArgsError::MissingValue("--fd")));
        assert_eq!(parse("--fdd 3"), Err(ArgsError::Unknown("--fdd".into())));
        assert_eq!(
            parse("--fd 3 --root /"),
            Err(ArgsError::Required("--cache"))
        );
        for wrong in [
            "--fd -1",
            "--root here",
            "--cache never",
            "--ids 3",
            "--threads 65",
            "--fd-limit x",
            "--tag",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
