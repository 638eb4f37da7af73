//! From a policy to its filters.

use std::path::Path;

use serde_json::json;

use crate::bpf::{bytes_of, generate, refuse_second_numbers};
use crate::error::PolicyError;
use crate::grammar::{read, Policy, Unknown};
use crate::rules::Rules;
use crate::Filter;

/// Compiles one filter of a policy into a classic BPF program: an array of `struct sock_filter`.
///
/// # Errors
/// When the policy is wrong; see [`PolicyError`].
pub fn compile(policy: &str, filter: Filter) -> Result<Vec<u8>, PolicyError> {
    let policy: Policy = toml::from_str(policy)?;
    match policy.extends.names() {
        [name, ..] => Err(PolicyError::Base(name.clone())),
        [] => compile_policy(&policy, &[], filter),
    }
}

/// Compiles one filter of the policy in a file, with the calls of the policies beside it that it extends.
///
/// # Errors
/// When a policy is wrong, or cannot be read; see [`PolicyError`].
pub fn compile_file(path: &Path, filter: Filter) -> Result<Vec<u8>, PolicyError> {
    let policy = read(path)?;
    let mut bases = Vec::new();
    for name in policy.extends.names() {
        let base = read(&path.with_file_name(format!("{name}.toml")))?;
        if !base.extends.names().is_empty() {
            return Err(PolicyError::Base(name.clone()));
        }
        bases.push(base);
    }
    compile_policy(&policy, &bases, filter)
}

fn compile_policy(
    policy: &Policy,
    bases: &[Policy],
    filter: Filter,
) -> Result<Vec<u8>, PolicyError> {
    if bases
        .iter()
        .chain([policy])
        .any(|one| !one.never.is_empty())
    {
        return compile_never(policy, bases);
    }
    let mut rules = Rules::default();
    let mut starts = Rules::default();
    for one in bases.iter().chain([policy]) {
        let mut whole = Rules::default();
        whole.add(&one.always)?;
        whole.add(&one.start)?;
    }
    for base in bases {
        let mut always = Rules::default();
        always.add(&base.always)?;
        rules.unite(always);
        let mut start = Rules::default();
        start.add(&base.start)?;
        starts.unite(start);
    }
    // What one needs for its start and this one always is no contradiction; what it adds must be new where it is added.
    rules.add(&policy.always)?;
    starts.add(&policy.start)?;
    if filter == Filter::Outer {
        rules.unite(starts);
    }
    let rules = rules.described();
    let unknown = bases.first().unwrap_or(policy).unknown;
    if let Some(name) = (policy.extends.names().iter().zip(bases))
        .find_map(|(name, base)| (base.unknown != unknown).then_some(name))
    {
        return Err(PolicyError::Base(name.clone()));
    }
    let unknown = match unknown {
        Unknown::Kill => json!("kill_process"),
        Unknown::NoSuchCall => json!({ "errno": libc::ENOSYS }),
    };
    let program = generate(&rules, &unknown, &json!("allow"))?;
    Ok(bytes_of(&program))
}

/// Compiles the one filter of a policy that names what is never called.
fn compile_never(policy: &Policy, bases: &[Policy]) -> Result<Vec<u8>, PolicyError> {
    if !bases.is_empty() || !policy.always.is_empty() || !policy.start.is_empty() {
        return Err(PolicyError::Mixed);
    }
    let mut rules = Rules::default();
    rules.add(&policy.never)?;
    let refused = json!({ "errno": libc::ENOSYS });
    let mut program = generate(&rules.described(), &json!("allow"), &refused)?;
    // The same calls have second numbers: a list of what is allowed does not have them, and this one must not.
    refuse_second_numbers(&mut program)?;
    Ok(bytes_of(&program))
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
