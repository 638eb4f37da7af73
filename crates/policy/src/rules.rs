//! What several entries, or policies, allow together.

use std::collections::BTreeMap;

use serde_json::{json, Value};

use crate::conditions::alternatives;
use crate::error::PolicyError;
use crate::grammar::Entry;

/// What is allowed: for each call the conditions on its arguments, of which one list must hold. A call that is allowed
/// whatever its arguments are has one empty list.
#[derive(Debug, Default)]
pub(crate) struct Rules<'p>(BTreeMap<&'p str, Vec<Vec<Value>>>);

impl<'p> Rules<'p> {
    /// Adds entries, none of which may say what is said already or make it mean nothing.
    pub(crate) fn add(&mut self, entries: &'p [Entry]) -> Result<(), PolicyError> {
        for entry in entries {
            if entry.calls.is_empty() || entry.why.trim().is_empty() {
                return Err(PolicyError::NoReason(entry.calls.clone()));
            }
            let alternatives = alternatives(&entry.args)?;
            for call in &entry.calls {
                let known = self.0.entry(call).or_default();
                // A bare call beside one with conditions would make the conditions mean nothing.
                let clashes = known.first().is_some_and(Vec::is_empty) != entry.args.is_empty();
                if !known.is_empty() && clashes {
                    return Err(PolicyError::Twice(call.clone()));
                }
                for arguments in &alternatives {
                    if known.contains(arguments) {
                        return Err(PolicyError::Twice(call.clone()));
                    }
                    known.push(arguments.clone());
                }
            }
        }
        Ok(())
    }

    /// Allows all that others allow, too.
    pub(crate) fn unite(&mut self, others: Rules<'p>) {
        for (call, alternatives) in others.0 {
            let known = self.0.entry(call).or_default();
            if known.iter().chain(&alternatives).any(Vec::is_empty) {
                *known = vec![Vec::new()];
                continue;
            }
            for arguments in alternatives {
                if !known.contains(&arguments) {
                    known.push(arguments);
                }
            }
        }
    }

    pub(crate) fn described(&self) -> Vec<Value> {
        let mut rules = Vec::new();
        for (call, alternatives) in &self.0 {
            for arguments in alternatives {
                let mut rule = json!({ "syscall": call });
                if !arguments.is_empty() {
                    rule["args"] = Value::Array(arguments.clone());
                }
                rules.push(rule);
            }
        }
        rules
    }
}
