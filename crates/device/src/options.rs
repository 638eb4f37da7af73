//! The command line of a device process: known words only, each once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;

use thiserror::Error;

/// What a wrong command line is answered with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// An option that does not exist.
    #[error("unknown option {0:?}")]
    Unknown(String),
    /// An option that was given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
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
    /// An option without which the device cannot start.
    #[error("{0} is required")]
    Required(&'static str),
}

/// The options of one program. `--fd` (the frontend's socket) and `--log-level` are everybody's and not named.
#[derive(Debug, Clone, Copy)]
pub struct Syntax {
    /// Options with a value.
    pub values: &'static [&'static str],
    /// Options without one.
    pub flags: &'static [&'static str],
    /// Options whose value is the number of an inherited descriptor.
    pub fds: &'static [&'static str],
}

/// The option that names the frontend's socket.
pub const SOCKET: &str = "--fd";
/// The option that says what is logged.
pub const LOG_LEVEL: &str = "--log-level";

#[cfg(not(feature = "hostile"))]
const COMMON: &[&str] = &[SOCKET, LOG_LEVEL];
#[cfg(not(feature = "hostile"))]
const COMMON_FLAGS: &[&str] = &[];
#[cfg(feature = "hostile")]
const COMMON: &[&str] = &[
    SOCKET,
    LOG_LEVEL,
    crate::hostile::ATTACK,
    crate::hostile::TARGET,
];
#[cfg(feature = "hostile")]
const COMMON_FLAGS: &[&str] = &[
    crate::hostile::BARE,
    crate::hostile::UNLIMITED,
    crate::hostile::NO_BUS_HANDLER,
];

/// A command line that has been taken apart.
#[derive(Debug, Clone)]
pub struct Options {
    given: BTreeMap<&'static str, String>,
    syntax: Syntax,
}

impl Options {
    /// Takes the words after the program's name apart.
    ///
    /// # Errors
    /// Says which word is wrong; nothing has been opened by then.
    pub fn parse(
        syntax: Syntax,
        words: impl Iterator<Item = OsString>,
    ) -> Result<Self, OptionsError> {
        let mut words = words.map(|word| word.to_string_lossy().into_owned());
        let mut given = BTreeMap::new();
        while let Some(word) = words.next() {
            let find = |names: &[&'static str]| names.iter().copied().find(|name| *name == word);
            let (name, value) =
                if let Some(name) = find(syntax.flags).or_else(|| find(COMMON_FLAGS)) {
                    (name, String::new())
                } else if let Some(name) = find(syntax.values)
                    .or_else(|| find(syntax.fds))
                    .or_else(|| find(COMMON))
                {
                    (name, words.next().ok_or(OptionsError::MissingValue(name))?)
                } else {
                    return Err(OptionsError::Unknown(word));
                };
            if given.insert(name, value).is_some() {
                return Err(OptionsError::Twice(name));
            }
        }
        let options = Options { given, syntax };
        options.required(SOCKET, parse_fd)?;
        Ok(options)
    }

    /// Whether an option without a value was given.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.given.contains_key(flag)
    }

    /// The value of an option, if it was given.
    ///
    /// # Errors
    /// When `parse` cannot make anything of it.
    pub fn optional<T>(
        &self,
        option: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OptionsError> {
        let Some(value) = self.given.get(option) else {
            return Ok(None);
        };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(OptionsError::BadValue {
                option,
                value: value.clone(),
            }),
        }
    }

    /// The value of an option that must be there.
    ///
    /// # Errors
    /// When it is not there, or `parse` cannot make anything of it.
    pub fn required<T>(
        &self,
        option: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, OptionsError> {
        self.optional(option, parse)?
            .ok_or(OptionsError::Required(option))
    }

    /// All options that name descriptors and were given, with what they name.
    ///
    /// # Errors
    /// When one is no number, or names what another one names.
    pub(crate) fn fds(&self) -> Result<BTreeMap<&'static str, RawFd>, OptionsError> {
        let mut found = BTreeMap::new();
        for name in self.syntax.fds.iter().copied().chain([SOCKET]) {
            if let Some(fd) = self.optional(name, parse_fd)? {
                if found.values().any(|other| *other == fd) {
                    return Err(OptionsError::BadValue {
                        option: name,
                        value: fd.to_string(),
                    });
                }
                found.insert(name, fd);
            }
        }
        Ok(found)
    }
}

fn parse_fd(text: &str) -> Option<RawFd> {
    text.parse().ok().filter(|fd| *fd >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNTAX: Syntax = Syntax {
        values: &["--root"],
        flags: &["--readonly"],
        fds: &["--image-fd"],
    };

    fn parse(text: &str) -> Result<Options, OptionsError> {
        Options::parse(SYNTAX, text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_whole_command_line_is_understood() {
        let options = parse("--fd 3 --root /a --readonly --image-fd 4 --log-level debug").unwrap();
        assert!(options.has("--readonly"));
        let root = options.required("--root", |text| Some(text.to_owned()));
        assert_eq!(root.unwrap(), "/a");
        assert_eq!(
            options.fds().unwrap(),
            BTreeMap::from([("--fd", 3), ("--image-fd", 4)])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("").unwrap_err(), OptionsError::Required("--fd"));
        assert_eq!(
            parse("--fd").unwrap_err(),
            OptionsError::MissingValue("--fd")
        );
        assert_eq!(
            parse("--fdd 3").unwrap_err(),
            OptionsError::Unknown("--fdd".into())
        );
        assert_eq!(
            parse("--fd 3 --fd 4").unwrap_err(),
            OptionsError::Twice("--fd")
        );
        assert!(parse("--fd -1").is_err());
        assert!(parse("--fd x").is_err());
        assert!(parse("--fd 3 --image-fd 3").unwrap().fds().is_err());
        let options = parse("--fd 3 --root /a").unwrap();
        assert!(options.required("--root", |_| None::<u8>).is_err());
        assert!(options
            .optional("--nothing", |_| Some(1))
            .unwrap()
            .is_none());
    }
}
