use super::*;
use crate::bpf::{LOAD_WORD, RETURN, X32};

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

#[test]
fn values_and_bits_of_one_condition_must_both_be_so() {
    let policy = r#"
        [[always]]
        calls = ["fcntl"]
        args = [{ index = 1, one_of = [2, 6], any = [4, 8] }]
        why = "six alone is one of the values and has one of the bits"
    "#;
    let program = compile(policy, Filter::Inner).unwrap();
    for value in 0..16 {
        let said = answer(&program, libc::SYS_fcntl as u32, [0, value, 0, 0, 0, 0]);
        assert_eq!(said == libc::SECCOMP_RET_ALLOW, value == 6, "{value}");
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
