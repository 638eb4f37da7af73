//! The words of a policy's file.

use std::path::Path;

use serde::Deserialize;

use crate::constants;
use crate::error::PolicyError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Other policies in the same directory, to which this one adds calls: what any of them allows is allowed.
    #[serde(default)]
    pub(crate) extends: Bases,
    /// What a call that is not named is answered with.
    #[serde(default)]
    pub(crate) unknown: Unknown,
    #[serde(default)]
    pub(crate) always: Vec<Entry>,
    #[serde(default)]
    pub(crate) start: Vec<Entry>,
    /// In place of the other two: calls that fail as on a kernel that does not have them, where all others are allowed.
    #[serde(default)]
    pub(crate) never: Vec<Entry>,
}

/// The names of the policies that one extends.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bases {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

impl Bases {
    pub(crate) fn names(&self) -> &[String] {
        match self {
            Bases::None => &[],
            Bases::One(name) => std::slice::from_ref(name),
            Bases::Several(names) => names,
        }
    }
}

/// What becomes of a call that no entry allows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Unknown {
    /// The process is killed.
    #[default]
    #[serde(rename = "kill")]
    Kill,
    /// The call fails as on a kernel that does not have it. For programs of others, which know how to do without.
    #[serde(rename = "ENOSYS")]
    NoSuchCall,
}

/// Calls that are allowed, or never made, for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) calls: Vec<String>,
    pub(crate) why: String,
    /// All of these must hold.
    #[serde(default)]
    pub(crate) args: Vec<Condition>,
    /// Why the test that looks for calls nobody needs does not see it; that test reads this, not the filter.
    #[serde(default)]
    #[allow(dead_code)]
    pub(crate) unseen: Option<String>,
}

/// What an argument (its lower 32 bits) must be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Condition {
    pub(crate) index: u8,
    #[serde(default)]
    pub(crate) one_of: Vec<Constant>,
    /// None of these bits.
    #[serde(default)]
    pub(crate) without: Vec<Constant>,
    /// All of these bits.
    #[serde(default)]
    pub(crate) with: Vec<Constant>,
    /// Any of these bits.
    #[serde(default)]
    pub(crate) any: Vec<Constant>,
    /// None of these values.
    #[serde(default)]
    pub(crate) none_of: Vec<Constant>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Constant {
    Number(u32),
    Name(String),
}

impl Constant {
    pub(crate) fn value(&self) -> Result<u32, PolicyError> {
        match self {
            Constant::Number(number) => Ok(*number),
            Constant::Name(name) => {
                constants::find(name).ok_or_else(|| PolicyError::Constant(name.clone()))
            }
        }
    }
}

/// Reads the policy in a file.
pub(crate) fn read(path: &Path) -> Result<Policy, PolicyError> {
    let text =
        std::fs::read_to_string(path).map_err(|_| PolicyError::Base(path.display().to_string()))?;
    Ok(toml::from_str(&text)?)
}
