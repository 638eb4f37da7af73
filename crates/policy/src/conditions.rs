//! Conditions on a call's arguments, as the compiler of filters takes them.

use serde_json::{json, Value};

use crate::error::PolicyError;
use crate::grammar::Condition;

/// The index of the last argument that a call can have.
const LAST_ARGUMENT: u8 = 5;
/// Rules that one entry may become, for each of its calls.
const MAX_ALTERNATIVES: usize = 256;

/// All ways in which all conditions can hold: a rule of the compiler is a conjunction, and several rules are alternatives.
pub(crate) fn alternatives(conditions: &[Condition]) -> Result<Vec<Vec<Value>>, PolicyError> {
    let mut found: Vec<Vec<Value>> = vec![Vec::new()];
    for condition in conditions {
        let (mut forbidden, mut needed) = (0, 0);
        for bits in &condition.without {
            forbidden |= bits.value()?;
        }
        for bits in &condition.with {
            needed |= bits.value()?;
        }
        let mut values = Vec::new();
        for value in &condition.one_of {
            values.push(comparison(condition.index, json!("eq"), value.value()?));
        }
        let mut any = Vec::new();
        for bits in &condition.any {
            let value = bits.value()?;
            if value == 0 {
                return Err(PolicyError::Condition(condition.index));
            }
            any.push(comparison(
                condition.index,
                json!({ "masked_eq": value }),
                value,
            ));
        }
        for other in &condition.none_of {
            let other = comparison(condition.index, json!("ne"), other.value()?);
            for known in &mut found {
                known.push(other.clone());
            }
        }
        let mask = forbidden | needed;
        let says_nothing =
            mask == 0 && values.is_empty() && any.is_empty() && condition.none_of.is_empty();
        if says_nothing || forbidden & needed != 0 || condition.index > LAST_ARGUMENT {
            return Err(PolicyError::Condition(condition.index));
        }
        if mask != 0 {
            let bits = comparison(condition.index, json!({ "masked_eq": mask }), needed);
            for known in &mut found {
                known.push(bits.clone());
            }
        }
        for options in [values, any] {
            found = each_with_one(found, &options)?;
        }
    }
    Ok(found)
}

/// All conjunctions, each with one of the options more; as they are where there are none.
fn each_with_one(
    found: Vec<Vec<Value>>,
    options: &[Value],
) -> Result<Vec<Vec<Value>>, PolicyError> {
    if options.is_empty() {
        return Ok(found);
    }
    if found.len().saturating_mul(options.len()) > MAX_ALTERNATIVES {
        return Err(PolicyError::TooMany);
    }
    let with_one = |known: &Vec<Value>, option: &Value| {
        [known.as_slice(), std::slice::from_ref(option)].concat()
    };
    Ok(found
        .iter()
        .flat_map(|known| options.iter().map(|option| with_one(known, option)))
        .collect())
}

fn comparison(index: u8, operator: Value, value: u32) -> Value {
    json!({ "index": index, "type": "dword", "op": operator, "val": value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compile, Filter};

    #[test]
    fn conditions_that_do_not_condition_are_refused() {
        let compiled = |condition: &str| {
            let entry = "[[always]]\ncalls = [\"mmap\"]\nwhy = \"x\"\nargs = [{ index = ";
            compile(&format!("{entry}{condition} }}]"), Filter::Inner)
        };
        assert!(compiled("2, without = [4]").is_ok());
        // Each of these would allow every call, or those that its words forbid.
        for wrong in [
            "2",
            "2, one_of = []",
            "2, without = [0]",
            "2, without = [4], with = [4]",
            "6, one_of = [1]",
        ] {
            assert!(
                matches!(compiled(wrong), Err(PolicyError::Condition(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn conditions_in_too_many_ways_are_refused() {
        let values: Vec<_> = (0..200).map(|value| value.to_string()).collect();
        let condition =
            |index: u8| format!("{{ index = {index}, one_of = [{}] }}", values.join(", "));
        let all: Vec<_> = (0..=LAST_ARGUMENT).map(condition).collect();
        let text = format!(
            "[[always]]\ncalls = [\"mmap\"]\nwhy = \"x\"\nargs = [{}]",
            all.join(", ")
        );
        assert!(matches!(
            compile(&text, Filter::Inner),
            Err(PolicyError::TooMany)
        ));
    }
}
