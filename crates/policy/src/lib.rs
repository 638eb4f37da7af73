//! Policies of system calls: what a process may ask of the kernel, with the reason beside each call.
//!
//! A policy (`policies/NAME.toml`) has two lists. `always` is what the process needs to do its work; `start` what it needs
//! only until it is ready. Two filters are made of them: the outer one allows both and is put on by the warden before the
//! exec; the inner one allows `always` alone and is put on by the process itself once it is ready. Every other call, and
//! every call of another architecture, kills the process. This runs when cloche is built, never when it starts something.
//!
//! A program whose calls cannot be listed (an interpreter that the user's own words drive) has one list instead, `never`: what
//! it never needs. Its one filter answers these as a kernel does that has no such call, and allows the rest.

mod constants;

use std::collections::BTreeMap;
use std::path::Path;

use seccompiler::{compile_from_json, sock_filter, BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{json, Value};
use thiserror::Error;

/// Which of a policy's two filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Put on from outside, before the exec.
    Outer,
    /// Put on from inside, when the process is ready.
    Inner,
}

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

/// The index of the last argument that a call can have.
const LAST_ARGUMENT: u8 = 5;
/// Rules that one entry may become, for each of its calls.
const MAX_ALTERNATIVES: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    /// Other policies in the same directory, to which this one adds calls: what any of them allows is allowed.
    #[serde(default)]
    extends: Bases,
    /// What a call that is not named is answered with.
    #[serde(default)]
    unknown: Unknown,
    #[serde(default)]
    always: Vec<Entry>,
    #[serde(default)]
    start: Vec<Entry>,
    /// In place of the other two: calls that fail as on a kernel that does not have them, where all others are allowed.
    #[serde(default)]
    never: Vec<Entry>,
}

/// The names of the policies that one extends.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Bases {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

impl Bases {
    fn names(&self) -> &[String] {
        match self {
            Bases::None => &[],
            Bases::One(name) => std::slice::from_ref(name),
            Bases::Several(names) => names,
        }
    }
}

/// What becomes of a call that no entry allows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Unknown {
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
struct Entry {
    calls: Vec<String>,
    why: String,
    /// All of these must hold.
    #[serde(default)]
    args: Vec<Condition>,
    /// Why the test that looks for calls nobody needs does not see it; that test reads this, not the filter.
    #[serde(default)]
    #[allow(dead_code)]
    unseen: Option<String>,
}

/// What an argument (its lower 32 bits) must be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    index: u8,
    #[serde(default)]
    one_of: Vec<Constant>,
    /// None of these bits.
    #[serde(default)]
    without: Vec<Constant>,
    /// All of these bits.
    #[serde(default)]
    with: Vec<Constant>,
    /// Any of these bits.
    #[serde(default)]
    any: Vec<Constant>,
    /// None of these values.
    #[serde(default)]
    none_of: Vec<Constant>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Constant {
    Number(u32),
    Name(String),
}

impl Constant {
    fn value(&self) -> Result<u32, PolicyError> {
        match self {
            Constant::Number(number) => Ok(*number),
            Constant::Name(name) => {
                constants::find(name).ok_or_else(|| PolicyError::Constant(name.clone()))
            }
        }
    }
}

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

fn read(path: &Path) -> Result<Policy, PolicyError> {
    let text =
        std::fs::read_to_string(path).map_err(|_| PolicyError::Base(path.display().to_string()))?;
    Ok(toml::from_str(&text)?)
}

/// What is allowed: for each call the conditions on its arguments, of which one list must hold. A call that is allowed
/// whatever its arguments are has one empty list.
#[derive(Debug, Default)]
struct Rules<'p>(BTreeMap<&'p str, Vec<Vec<Value>>>);

impl<'p> Rules<'p> {
    /// Adds entries, none of which may say what is said already or make it mean nothing.
    fn add(&mut self, entries: &'p [Entry]) -> Result<(), PolicyError> {
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
    fn unite(&mut self, others: Rules<'p>) {
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

    fn described(&self) -> Vec<Value> {
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
    let [.., _, number] = program.get(..HEAD).ok_or(PolicyError::Nothing)? else {
        return Err(PolicyError::Nothing);
    };
    if (number.code, number.k) != (LOAD_WORD, 0) {
        return Err(PolicyError::Nothing);
    }
    // The same calls have second numbers, those of x32: a list of what is allowed does not have them, and this one must not.
    let second = [
        instruction(JUMP_IF_AT_LEAST, 0, 1, X32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    program.splice(HEAD..HEAD, second);
    Ok(bytes_of(&program))
}

/// Instructions in front of the rules: they look at the architecture and load the call's number.
const HEAD: usize = 4;
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// The first number of x32.
const X32: u32 = 0x4000_0000;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn generate(rules: &[Value], others: &Value, named: &Value) -> Result<BpfProgram, PolicyError> {
    let description = json!({
        "main": { "mismatch_action": others, "match_action": named, "filter": rules }
    })
    .to_string();
    let mut compiled = compile_from_json(description.as_bytes(), TargetArch::x86_64)?;
    compiled.remove("main").ok_or(PolicyError::Nothing)
}

fn bytes_of(program: &BpfProgram) -> Vec<u8> {
    program
        .iter()
        .flat_map(|instruction| {
            let [code_0, code_1] = instruction.code.to_ne_bytes();
            let [k_0, k_1, k_2, k_3] = instruction.k.to_ne_bytes();
            [
                code_0,
                code_1,
                instruction.jt,
                instruction.jf,
                k_0,
                k_1,
                k_2,
                k_3,
            ]
        })
        .collect()
}

/// For the build script of a program: compiles `policies/NAME.toml`, and writes the inner filter to `OUT_DIR`.
///
/// # Panics
/// When there is no such policy or it is wrong: the build ends with the reason.
pub fn build(name: &str) {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let path = policies.join(format!("{name}.toml"));
    let fail = |error: PolicyError| -> ! { panic!("{}: {error}", path.display()) };
    let bases = read(&path).unwrap_or_else(|error| fail(error)).extends;
    for name in bases.names().iter().map(String::as_str).chain([name]) {
        let path = policies.join(format!("{name}.toml"));
        println!("cargo:rerun-if-changed={}", path.display());
    }
    let filter = compile_file(&path, Filter::Inner).unwrap_or_else(|error| fail(error));
    let output = std::env::var_os("OUT_DIR").unwrap_or_default();
    let output = Path::new(&output).join("inner.filter");
    std::fs::write(&output, filter).unwrap_or_else(|error| panic!("{}: {error}", output.display()));
}

/// All ways in which all conditions can hold: a rule of the compiler is a conjunction, and several rules are alternatives.
fn alternatives(conditions: &[Condition]) -> Result<Vec<Vec<Value>>, PolicyError> {
    let mut found: Vec<Vec<Value>> = vec![Vec::new()];
    for condition in conditions {
        let (mut forbidden, mut needed) = (0, 0);
        for bits in &condition.without {
            forbidden |= bits.value()?;
        }
        for bits in &condition.with {
            needed |= bits.value()?;
        }
        let mut options = Vec::new();
        for value in &condition.one_of {
            options.push(comparison(condition.index, json!("eq"), value.value()?));
        }
        for bits in &condition.any {
            let value = bits.value()?;
            if value == 0 {
                return Err(PolicyError::Condition(condition.index));
            }
            options.push(comparison(
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
        let says_nothing = mask == 0 && options.is_empty() && condition.none_of.is_empty();
        if says_nothing || forbidden & needed != 0 || condition.index > LAST_ARGUMENT {
            return Err(PolicyError::Condition(condition.index));
        }
        if found.len().saturating_mul(options.len()) > MAX_ALTERNATIVES {
            return Err(PolicyError::TooMany);
        }
        if mask != 0 {
            let bits = comparison(condition.index, json!({ "masked_eq": mask }), needed);
            for known in &mut found {
                known.push(bits.clone());
            }
        }
        if !options.is_empty() {
            found = found
                .iter()
                .flat_map(|known| {
                    options
                        .iter()
                        .map(|option| [known.as_slice(), std::slice::from_ref(option)].concat())
                })
                .collect();
        }
    }
    Ok(found)
}

fn comparison(index: u8, operator: Value, value: u32) -> Value {
    json!({ "index": index, "type": "dword", "op": operator, "val": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(policy: &str, filter: Filter) -> usize {
        compile(policy, filter).unwrap().len() / 8
    }

    #[test]
    fn the_outer_filter_allows_more() {
        let policy = r#"
            [[always]]
            calls = ["read", "write"]
            why = "work"
            [[start]]
            calls = ["execveat"]
            why = "start"
        "#;
        assert!(length(policy, Filter::Outer) > length(policy, Filter::Inner));
    }

    #[test]
    fn conditions_are_compiled() {
        let policy = r#"
            [[always]]
            calls = ["fcntl"]
            args = [{ index = 1, one_of = ["F_GETFL", "F_SETFL"] }]
            why = "flags"
            [[always]]
            calls = ["mmap"]
            args = [{ index = 2, without = ["PROT_EXEC"] }]
            why = "memory"
            [[always]]
            calls = ["clone"]
            args = [{ index = 0, with = ["CLONE_THREAD"] }]
            why = "threads"
        "#;
        assert!(length(policy, Filter::Inner) > 15);
    }

    #[test]
    fn mistakes_are_found() {
        let wrong = [
            "[[always]]\ncalls = [\"read\"]\nwhy = \" \"",
            "[[always]]\ncalls = []\nwhy = \"x\"",
            "[[always]]\ncalls = [\"raed\"]\nwhy = \"x\"",
            "[[always]]\ncalls = [\"read\", \"read\"]\nwhy = \"x\"",
            "[[always]]\ncalls = [\"read\"]\nwhy = \"x\"\nreason = \"y\"",
            "[[always]]\ncalls = [\"fcntl\"]\nwhy = \"x\"\nargs = [{ index = 1, one_of = [\"F_NO\"] }]",
            "[[always]]\ncalls = [\"fcntl\"]\nwhy = \"x\"\nargs = [{ index = 1, one_of = [1] }]\n\
             [[always]]\ncalls = [\"fcntl\"]\nwhy = \"x\"",
            "[[sometimes]]\ncalls = [\"read\"]\nwhy = \"x\"",
        ];
        for policy in wrong {
            assert!(compile(policy, Filter::Inner).is_err(), "{policy}");
        }
    }

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

    /// What a filter answers to a call with these arguments.
    fn answer(program: &[u8], number: u32, arguments: [u32; 6]) -> u32 {
        let word = |at: u32| match at {
            0 => number,
            4 => 0xC000_003E,
            _ if at % 8 == 0 => arguments[(at as usize - 16) / 8],
            _ => 0,
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let bytes = &program[8 * at..8 * at + 8];
            let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
            let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let holds = match code {
                0x15 => value == k,
                0x25 => value > k,
                0x35 => value >= k,
                _ => false,
            };
            at += 1;
            match code {
                LOAD_WORD => value = word(k),
                0x54 => value &= k,
                0x05 => at += k as usize,
                RETURN => return k,
                0x15 | 0x25 | 0x35 => at += usize::from(if holds { bytes[2] } else { bytes[3] }),
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn what_is_never_called_fails_and_all_else_is_allowed() {
        let policy = r#"
            [[never]]
            calls = ["ptrace"]
            why = "others"
            [[never]]
            calls = ["socket"]
            args = [{ index = 0, none_of = ["AF_UNIX"] }]
            why = "networks"
            [[never]]
            calls = ["clone"]
            args = [{ index = 0, any = ["CLONE_NEWUSER", "CLONE_NEWNET"] }]
            why = "namespaces"
        "#;
        let program = compile(policy, Filter::Outer).unwrap();
        assert_eq!(program, compile(policy, Filter::Inner).unwrap());
        let first = |value: i32| [value as u32, 0, 0, 0, 0, 0];
        let refused = |number: i64, value: i32| {
            let number = number as u32;
            let said = answer(&program, number, first(value));
            // Called by its second number it is refused, whatever it is.
            assert_ne!(
                answer(&program, number | X32, first(value)),
                libc::SECCOMP_RET_ALLOW
            );
            assert!(said == libc::SECCOMP_RET_ALLOW || said == libc::SECCOMP_RET_ERRNO | 38);
            said != libc::SECCOMP_RET_ALLOW
        };
        assert!(refused(libc::SYS_ptrace, 0));
        assert!(refused(libc::SYS_socket, libc::AF_INET));
        assert!(refused(libc::SYS_socket, libc::AF_NETLINK));
        assert!(!refused(libc::SYS_socket, libc::AF_UNIX));
        assert!(refused(
            libc::SYS_clone,
            libc::CLONE_NEWUSER | libc::SIGCHLD
        ));
        assert!(refused(
            libc::SYS_clone,
            libc::CLONE_NEWNET | libc::CLONE_VM
        ));
        assert!(!refused(libc::SYS_clone, libc::CLONE_VM | libc::SIGCHLD));
        assert!(!refused(libc::SYS_read, 0));
        for mixed in [
            "[[start]]\ncalls = [\"read\"]\nwhy = \"x\"",
            "[[always]]\ncalls = [\"read\"]\nwhy = \"x\"",
        ] {
            let text = format!("{policy}\n{mixed}");
            assert!(matches!(
                compile(&text, Filter::Outer),
                Err(PolicyError::Mixed)
            ));
        }
    }

    /// A directory with these policies that goes with it.
    struct Policies(std::path::PathBuf);

    impl Policies {
        fn write(test: &str, policies: &[(&str, &str)]) -> Self {
            let name = format!("cloche-policy-{test}.{}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir(&directory).unwrap();
            for (name, text) in policies {
                std::fs::write(directory.join(name).with_extension("toml"), text).unwrap();
            }
            Policies(directory)
        }

        fn compile(&self, name: &str, filter: Filter) -> Result<Vec<u8>, PolicyError> {
            compile_file(&self.0.join(name).with_extension("toml"), filter)
        }
    }

    impl Drop for Policies {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const BASE: &str = r#"
        unknown = "ENOSYS"
        [[always]]
        calls = ["read"]
        why = "work"
        [[start]]
        calls = ["execveat"]
        why = "start"
    "#;

    #[test]
    fn a_policy_that_extends_another_allows_what_both_name() {
        let more = r#"
            extends = "base"
            [[always]]
            calls = ["write"]
            why = "more work"
            [[start]]
            calls = ["brk"]
            why = "more start"
        "#;
        let policies = Policies::write("both", &[("base", BASE), ("more", more)]);
        let whole = r#"
            unknown = "ENOSYS"
            [[always]]
            calls = ["read", "write"]
            why = "work"
            [[start]]
            calls = ["execveat", "brk"]
            why = "start"
        "#;
        for filter in [Filter::Outer, Filter::Inner] {
            let extended = policies.compile("more", filter).unwrap();
            // What becomes of other calls is the base's to say.
            assert_eq!(extended, compile(whole, filter).unwrap());
            let base = policies.compile("base", filter).unwrap();
            assert_eq!(base, compile(BASE, filter).unwrap());
            assert_ne!(extended, base);
        }
    }

    #[test]
    fn a_policy_that_extends_several_allows_what_any_of_them_allows() {
        let one = r#"
            [[always]]
            calls = ["fcntl"]
            args = [{ index = 1, one_of = [1] }]
            why = "flags"
            [[always]]
            calls = ["fallocate"]
            args = [{ index = 1, one_of = [3] }]
            why = "holes"
            [[start]]
            calls = ["brk"]
            why = "start"
        "#;
        let other = r#"
            [[always]]
            calls = ["fcntl"]
            args = [{ index = 1, one_of = [1, 2] }]
            why = "more flags"
            [[always]]
            calls = ["fallocate", "brk"]
            why = "work"
        "#;
        let both = r#"
            extends = ["one", "other"]
            [[always]]
            calls = ["futex"]
            why = "threads"
        "#;
        let whole = r#"
            [[always]]
            calls = ["fcntl"]
            args = [{ index = 1, one_of = [1, 2] }]
            why = "flags"
            [[always]]
            calls = ["fallocate", "brk", "futex"]
            why = "work"
        "#;
        let lax = "unknown = \"ENOSYS\"\n[[always]]\ncalls = [\"read\"]\nwhy = \"x\"";
        let mixed = "extends = [\"one\", \"lax\"]";
        let written = [
            ("one", one),
            ("other", other),
            ("both", both),
            ("lax", lax),
            ("mixed", mixed),
        ];
        let policies = Policies::write("several", &written);
        for filter in [Filter::Outer, Filter::Inner] {
            let united = policies.compile("both", filter).unwrap();
            assert_eq!(united, compile(whole, filter).unwrap());
        }
        assert!(policies.compile("mixed", Filter::Inner).is_err());
    }

    #[test]
    fn what_cannot_be_extended_is_refused() {
        let wrong = [
            ("absent", "extends = \"nothing\""),
            ("chain", "extends = \"first\""),
            ("itself", "extends = \"itself\""),
            (
                "twice",
                "extends = \"base\"\n[[always]]\ncalls = [\"read\"]\nwhy = \"x\"",
            ),
            (
                "looser",
                "extends = \"bound\"\n[[always]]\ncalls = [\"fcntl\"]\nwhy = \"x\"",
            ),
        ];
        let first = "extends = \"base\"";
        let bound =
            "[[always]]\ncalls = [\"fcntl\"]\nwhy = \"x\"\nargs = [{ index = 1, one_of = [1] }]";
        let mut written = vec![("base", BASE), ("first", first), ("bound", bound)];
        written.extend(wrong);
        let policies = Policies::write("wrong", &written);
        assert!(policies.compile("first", Filter::Inner).is_ok());
        for (name, text) in wrong {
            assert!(policies.compile(name, Filter::Inner).is_err(), "{name}");
            // Without the directory there is nothing that could be extended.
            assert!(matches!(
                compile(text, Filter::Inner),
                Err(PolicyError::Base(_))
            ));
        }
    }
}
