//! What can be wrong with a policy.

use thiserror::Error;

/// Why a policy cannot be compiled.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It is no TOML, or has other fields than those of a policy.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A call is named without a reason, or no call at all.
    #[error("an entry needs calls and a reason: {0:?}")]
    NoReason(Vec<String>),
    /// A call is allowed twice on the same conditions, or both with and without conditions.
    #[error("{0} is named twice")]
    Twice(String),
    /// A policy that this one extends cannot be read, extends a third one, or treats unknown calls otherwise than others.
    #[error("the policy {0:?} cannot be extended")]
    Base(String),
    /// An argument is compared with something unknown.
    #[error("there is no constant {0:?}")]
    Constant(String),
    /// A condition that holds whatever the argument is, or never; or about an argument that no call has.
    #[error("a condition on the argument {0} that says nothing or contradicts itself")]
    Condition(u8),
    /// Conditions whose words can hold together in more ways than a filter has room for.
    #[error("its conditions can hold in too many ways")]
    TooMany,
    /// There is no such call, or the filter would be too long.
    #[error("{0}")]
    Compile(#[from] seccompiler::Error),
    /// Calls that are never made stand beside calls that are allowed, or a policy extends another that has such.
    #[error("a policy names either the calls it allows or those that are never made")]
    Mixed,
    /// The compiler of filters gave nothing back.
    #[error("the compiler gave no filter")]
    Nothing,
}
