//! Policies of system calls: whatever the text says, it is refused or becomes filters that allow what its words allow, call
//! by call and argument by argument, and nothing more; or, where it names what is never called, refuse that and nothing else.
//! The outer filter allows whatever the inner one does.
//!
//! The words are read here a second time, by another parser and without alternatives or masks, and the compiled programs are
//! run. After a first byte of zero the input is the policy itself; after another it is a row of decisions that makes one.

use std::fmt::Write;

use cloche_policy::{compile, Filter};
use toml::{Table, Value};

use crate::choices::Choices;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;
/// The first number of x32, the other numbering of the same architecture.
const X32: u32 = 1 << 30;
/// The kernel takes no longer program (BPF_MAXINSNS).
const MOST: usize = 4096;

#[rustfmt::skip]
const CALLS: &[(&str, i64)] = &[
    ("accept4", libc::SYS_accept4), ("access", libc::SYS_access),
    ("arch_prctl", libc::SYS_arch_prctl), ("bind", libc::SYS_bind), ("bpf", libc::SYS_bpf),
    ("brk", libc::SYS_brk), ("capget", libc::SYS_capget), ("capset", libc::SYS_capset),
    ("chdir", libc::SYS_chdir), ("clock_getres", libc::SYS_clock_getres),
    ("clock_gettime", libc::SYS_clock_gettime), ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("clone", libc::SYS_clone), ("clone3", libc::SYS_clone3), ("close", libc::SYS_close),
    ("close_range", libc::SYS_close_range), ("connect", libc::SYS_connect),
    ("copy_file_range", libc::SYS_copy_file_range), ("dup", libc::SYS_dup),
    ("dup3", libc::SYS_dup3), ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl), ("epoll_pwait", libc::SYS_epoll_pwait),
    ("epoll_pwait2", libc::SYS_epoll_pwait2), ("epoll_wait", libc::SYS_epoll_wait),
    ("eventfd2", libc::SYS_eventfd2), ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat), ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group), ("faccessat2", libc::SYS_faccessat2),
    ("fallocate", libc::SYS_fallocate), ("fchdir", libc::SYS_fchdir), ("fchmod", libc::SYS_fchmod),
    ("fchmodat", libc::SYS_fchmodat), ("fchownat", libc::SYS_fchownat), ("fcntl", libc::SYS_fcntl),
    ("fdatasync", libc::SYS_fdatasync), ("fgetxattr", libc::SYS_fgetxattr),
    ("flistxattr", libc::SYS_flistxattr), ("flock", libc::SYS_flock), ("fork", libc::SYS_fork),
    ("fremovexattr", libc::SYS_fremovexattr), ("fsetxattr", libc::SYS_fsetxattr),
    ("fstatfs", libc::SYS_fstatfs), ("fsync", libc::SYS_fsync), ("ftruncate", libc::SYS_ftruncate),
    ("futex", libc::SYS_futex), ("get_mempolicy", libc::SYS_get_mempolicy),
    ("getcwd", libc::SYS_getcwd), ("getdents64", libc::SYS_getdents64),
    ("getegid", libc::SYS_getegid), ("geteuid", libc::SYS_geteuid), ("getgid", libc::SYS_getgid),
    ("getpeername", libc::SYS_getpeername), ("getpid", libc::SYS_getpid),
    ("getrandom", libc::SYS_getrandom), ("getrusage", libc::SYS_getrusage),
    ("getsockname", libc::SYS_getsockname), ("getsockopt", libc::SYS_getsockopt),
    ("gettid", libc::SYS_gettid), ("gettimeofday", libc::SYS_gettimeofday),
    ("getuid", libc::SYS_getuid), ("getxattr", libc::SYS_getxattr),
    ("io_uring_setup", libc::SYS_io_uring_setup), ("ioctl", libc::SYS_ioctl),
    ("keyctl", libc::SYS_keyctl), ("kill", libc::SYS_kill), ("linkat", libc::SYS_linkat),
    ("listen", libc::SYS_listen), ("listxattr", libc::SYS_listxattr), ("lseek", libc::SYS_lseek),
    ("madvise", libc::SYS_madvise), ("mbind", libc::SYS_mbind),
    ("membarrier", libc::SYS_membarrier), ("memfd_create", libc::SYS_memfd_create),
    ("memfd_secret", libc::SYS_memfd_secret), ("mkdirat", libc::SYS_mkdirat),
    ("mknodat", libc::SYS_mknodat), ("mmap", libc::SYS_mmap), ("mount", libc::SYS_mount),
    ("mprotect", libc::SYS_mprotect), ("mremap", libc::SYS_mremap), ("munmap", libc::SYS_munmap),
    ("name_to_handle_at", libc::SYS_name_to_handle_at), ("nanosleep", libc::SYS_nanosleep),
    ("newfstatat", libc::SYS_newfstatat), ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2), ("perf_event_open", libc::SYS_perf_event_open),
    ("pipe2", libc::SYS_pipe2), ("poll", libc::SYS_poll), ("ppoll", libc::SYS_ppoll),
    ("prctl", libc::SYS_prctl), ("pread64", libc::SYS_pread64), ("preadv", libc::SYS_preadv),
    ("preadv2", libc::SYS_preadv2), ("prlimit64", libc::SYS_prlimit64),
    ("ptrace", libc::SYS_ptrace), ("pwrite64", libc::SYS_pwrite64), ("pwritev", libc::SYS_pwritev),
    ("pwritev2", libc::SYS_pwritev2), ("read", libc::SYS_read), ("readlink", libc::SYS_readlink),
    ("readlinkat", libc::SYS_readlinkat), ("readv", libc::SYS_readv),
    ("recvfrom", libc::SYS_recvfrom), ("recvmsg", libc::SYS_recvmsg),
    ("removexattr", libc::SYS_removexattr), ("renameat2", libc::SYS_renameat2),
    ("restart_syscall", libc::SYS_restart_syscall), ("rseq", libc::SYS_rseq),
    ("rt_sigaction", libc::SYS_rt_sigaction), ("rt_sigpending", libc::SYS_rt_sigpending),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask), ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait),
    ("sched_getaffinity", libc::SYS_sched_getaffinity), ("sched_yield", libc::SYS_sched_yield),
    ("seccomp", libc::SYS_seccomp), ("sendmsg", libc::SYS_sendmsg), ("sendto", libc::SYS_sendto),
    ("set_mempolicy", libc::SYS_set_mempolicy), ("set_robust_list", libc::SYS_set_robust_list),
    ("set_tid_address", libc::SYS_set_tid_address), ("setgroups", libc::SYS_setgroups),
    ("setresgid", libc::SYS_setresgid), ("setresuid", libc::SYS_setresuid),
    ("setsockopt", libc::SYS_setsockopt), ("setxattr", libc::SYS_setxattr),
    ("shutdown", libc::SYS_shutdown), ("sigaltstack", libc::SYS_sigaltstack),
    ("signalfd4", libc::SYS_signalfd4), ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair), ("statfs", libc::SYS_statfs), ("statx", libc::SYS_statx),
    ("symlinkat", libc::SYS_symlinkat), ("syncfs", libc::SYS_syncfs),
    ("sysinfo", libc::SYS_sysinfo), ("tgkill", libc::SYS_tgkill),
    ("timer_create", libc::SYS_timer_create), ("timer_delete", libc::SYS_timer_delete),
    ("timer_settime", libc::SYS_timer_settime), ("timerfd_create", libc::SYS_timerfd_create),
    ("timerfd_settime", libc::SYS_timerfd_settime), ("umask", libc::SYS_umask),
    ("uname", libc::SYS_uname), ("unlink", libc::SYS_unlink), ("unlinkat", libc::SYS_unlinkat),
    ("userfaultfd", libc::SYS_userfaultfd), ("utimensat", libc::SYS_utimensat),
    ("vfork", libc::SYS_vfork), ("write", libc::SYS_write), ("writev", libc::SYS_writev),
];

#[rustfmt::skip]
const CONSTANTS: &[(&str, i64)] = &[
    ("F_GETFL", libc::F_GETFL as i64), ("F_SETFL", libc::F_SETFL as i64),
    ("F_SETFD", libc::F_SETFD as i64), ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as i64),
    ("PROT_EXEC", libc::PROT_EXEC as i64), ("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE as i64),
    ("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS as i64),
    ("PR_CAPBSET_READ", libc::PR_CAPBSET_READ as i64),
    ("PR_GET_SECUREBITS", libc::PR_GET_SECUREBITS as i64),
    ("PR_GET_NO_NEW_PRIVS", libc::PR_GET_NO_NEW_PRIVS as i64),
    ("PR_CAP_AMBIENT", libc::PR_CAP_AMBIENT as i64), ("PR_SET_NAME", libc::PR_SET_NAME as i64),
    ("PR_SET_TIMERSLACK", libc::PR_SET_TIMERSLACK as i64),
    ("PR_MCE_KILL", libc::PR_MCE_KILL as i64),
    ("SECCOMP_SET_MODE_FILTER", libc::SECCOMP_SET_MODE_FILTER as i64),
    ("SECCOMP_GET_ACTION_AVAIL", libc::SECCOMP_GET_ACTION_AVAIL as i64),
    ("CLONE_THREAD", libc::CLONE_THREAD as i64), ("CLONE_FS", libc::CLONE_FS as i64),
    ("CLONE_NEWUSER", libc::CLONE_NEWUSER as i64), ("CLONE_NEWNS", libc::CLONE_NEWNS as i64),
    ("CLONE_NEWPID", libc::CLONE_NEWPID as i64), ("CLONE_NEWNET", libc::CLONE_NEWNET as i64),
    ("CLONE_NEWIPC", libc::CLONE_NEWIPC as i64), ("CLONE_NEWUTS", libc::CLONE_NEWUTS as i64),
    ("CLONE_NEWCGROUP", libc::CLONE_NEWCGROUP as i64),
    ("TIOCSTI", libc::TIOCSTI as u32 as i64), ("TIOCLINUX", libc::TIOCLINUX as u32 as i64), ("AF_UNIX", libc::AF_UNIX as i64),
    ("AF_INET", libc::AF_INET as i64), ("AF_NETLINK", libc::AF_NETLINK as i64),
];

/// What the kernel shows to a filter (`struct seccomp_data`), without the instruction pointer.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    args: [u64; 6],
}

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let text = match choices.byte() {
        0 => String::from_utf8_lossy(choices.rest()).into_owned(),
        _ => any_policy(&mut choices),
    };
    let inner = compile(&text, Filter::Inner);
    let outer = compile(&text, Filter::Outer);
    let (Ok(inner), Ok(outer)) = (inner, outer) else {
        return;
    };
    let words: Table = text.parse().expect("what was compiled is TOML");
    let never = entries(&words, "never");
    if !never.is_empty() {
        assert_eq!(inner, outer);
        return check_never(&inner, &never);
    }
    let always = entries(&words, "always");
    let start = entries(&words, "start");
    let all: Vec<_> = always.iter().chain(&start).copied().collect();
    check(&inner, &always, &all, &words);
    check(&outer, &all, &all, &words);
    for call in calls(&all) {
        assert!(
            execute(&inner, call) != ALLOW || execute(&outer, call) == ALLOW,
            "{call:?}"
        );
    }
}

fn entries<'w>(words: &'w Table, list: &str) -> Vec<&'w Table> {
    let list = words.get(list).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_table)
        .collect()
}

fn check(program: &[u8], allowed: &[&Table], all: &[&Table], words: &Table) {
    assert!(program.len() / 8 <= MOST && program.len() % 8 == 0);
    let refusal = match words.get("unknown").and_then(Value::as_str) {
        Some("ENOSYS") => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    };
    for call in calls(all) {
        let wanted = if is_named(call, allowed) {
            ALLOW
        } else {
            refusal
        };
        let found = execute(program, call);
        // Calls of another architecture are nobody's.
        if call.arch != X86_64 {
            assert_ne!(found, ALLOW, "{call:?}");
        } else {
            assert_eq!(found, wanted, "{call:x?}");
        }
    }
}

/// Looks whether a filter refuses what is never called, under both numbers that a call has, and nothing else.
fn check_never(program: &[u8], never: &[&Table]) {
    assert!(program.len() / 8 <= MOST && program.len() % 8 == 0);
    let refusal = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    for call in calls(never) {
        let found = execute(program, call);
        if call.arch != X86_64 {
            assert_ne!(found, ALLOW, "{call:?}");
        } else if call.number >= X32 || is_named(call, never) {
            assert_eq!(found, refusal, "{call:x?}");
        } else {
            assert_eq!(found, ALLOW, "{call:x?}");
        }
    }
}

/// What the words say: whether an entry names the call, and its arguments are as that wants them.
fn is_named(call: Call, entries: &[&Table]) -> bool {
    entries.iter().any(|entry| {
        let names = strings(entry.get("calls"));
        let has_name = names.iter().any(|name| number(name) == Some(call.number));
        let conditions = entry.get("args").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten().filter_map(Value::as_table);
        has_name && conditions.all(|condition| holds(condition, call))
    })
}

fn holds(condition: &Table, call: Call) -> bool {
    let index = condition.get("index").and_then(Value::as_integer);
    let index = usize::try_from(index.expect("it has one")).expect("it is small");
    let found = call.args[index] as u32;
    let one_of = values(condition.get("one_of"));
    let without = values(condition.get("without"));
    let with = values(condition.get("with"));
    let none_of = values(condition.get("none_of"));
    let any = values(condition.get("any"));
    (one_of.is_empty() || one_of.contains(&found))
        && !none_of.contains(&found)
        && (any.is_empty() || any.iter().any(|bits| found & bits != 0))
        && without.iter().all(|bits| found & bits == 0)
        && with.iter().all(|bits| found & bits == *bits)
}

fn strings(list: Option<&Value>) -> Vec<&str> {
    let list = list.and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn values(list: Option<&Value>) -> Vec<u32> {
    let list = list.and_then(Value::as_array);
    let value = |value: &Value| match value {
        Value::Integer(number) => u32::try_from(*number).ok(),
        other => other.as_str().and_then(|name| find(CONSTANTS, name)),
    };
    list.into_iter().flatten().filter_map(value).collect()
}

fn find(table: &[(&str, i64)], wanted: &str) -> Option<u32> {
    let found = table.iter().find(|(name, _)| *name == wanted)?;
    Some(found.1 as u32)
}

fn number(name: &str) -> Option<u32> {
    find(CALLS, name)
}

/// The calls that are tried: all of [`CALLS`] without arguments, and those that are named with arguments near what the words
/// say about them.
fn calls(all: &[&Table]) -> Vec<Call> {
    let bare = |number: u32, arch: u32| Call {
        number,
        arch,
        args: [0; 6],
    };
    let mut calls = Vec::new();
    for (_, number) in CALLS {
        let number = *number as u32;
        calls.extend([bare(number, X86_64), bare(number, I386)]);
        calls.push(bare(number | X32, X86_64));
    }
    for entry in all {
        let conditions = entry.get("args").and_then(Value::as_array);
        let conditions: Vec<_> = conditions
            .into_iter()
            .flatten()
            .filter_map(Value::as_table)
            .collect();
        let mut near = vec![0, 1, u32::MAX];
        for condition in &conditions {
            for list in ["one_of", "none_of", "any", "without", "with"] {
                near.extend(values(condition.get(list)));
            }
        }
        near.truncate(16);
        let together = near
            .iter()
            .fold(0, |bits, value| bits | value & 0x7FFF_FFFF);
        near.push(together);
        for name in strings(entry.get("calls")).into_iter().take(2) {
            let Some(number) = number(name) else { continue };
            for first in &near {
                for (shift, second) in near.iter().enumerate().step_by(1 + near.len() / 6) {
                    let mut call = bare(number, X86_64);
                    for (place, arg) in call.args.iter_mut().enumerate() {
                        let value = if (place + shift) % 2 == 0 {
                            first
                        } else {
                            second
                        };
                        // The upper half says nothing.
                        *arg = u64::from(*value) | (shift as u64) << 32;
                    }
                    calls.push(call);
                }
            }
        }
    }
    calls
}

/// Runs a filter (classic BPF, as far as filters of system calls may use it).
fn execute(program: &[u8], call: Call) -> u32 {
    let mut data = [0; 64];
    data[0..4].copy_from_slice(&call.number.to_ne_bytes());
    data[4..8].copy_from_slice(&call.arch.to_ne_bytes());
    for (place, arg) in data[16..].chunks_exact_mut(8).zip(call.args) {
        place.copy_from_slice(&arg.to_ne_bytes());
    }
    let mut accumulator = 0_u32;
    let mut next = 0;
    loop {
        let at = &program[next * 8..next * 8 + 8];
        let code = u16::from_ne_bytes([at[0], at[1]]);
        let k = u32::from_ne_bytes([at[4], at[5], at[6], at[7]]);
        let jump = |is_true: bool| usize::from(if is_true { at[2] } else { at[3] });
        next += 1;
        match code {
            0x20 => {
                let place = k as usize;
                let word = data[place..place + 4].try_into().expect("four bytes");
                accumulator = u32::from_ne_bytes(word);
            }
            0x54 => accumulator &= k,
            0x05 => next += k as usize,
            0x15 => next += jump(accumulator == k),
            0x25 => next += jump(accumulator > k),
            0x35 => next += jump(accumulator >= k),
            0x45 => next += jump(accumulator & k != 0),
            0x06 => return k,
            other => panic!("an instruction that is not known: {other:#x}"),
        }
    }
}

/// A policy of a few entries.
fn any_policy(choices: &mut Choices<'_>) -> String {
    const NAMES: [&str; 8] = [
        "read", "fcntl", "mmap", "clone", "prctl", "socket", "seccomp", "nothing",
    ];
    let mut text = String::new();
    let is_never = choices.once_in(4);
    if choices.once_in(4) {
        text.push_str("unknown = \"ENOSYS\"\n");
    }
    for _ in 0..1 + choices.byte() % 5 {
        let list = if is_never {
            "never"
        } else if choices.once_in(3) {
            "start"
        } else {
            "always"
        };
        let names = (0..1 + choices.byte() % 3).map(|_| {
            let name = choices.pick(&NAMES);
            format!("{name:?}")
        });
        let names: Vec<_> = names.collect();
        let _ = write!(
            text,
            "[[{list}]]\ncalls = [{}]\nwhy = \"x\"\nargs = [",
            names.join(", ")
        );
        for _ in 0..choices.byte() % 4 {
            let _ = write!(text, "{{ index = {}", choices.byte() % 7);
            for words in ["one_of", "none_of", "any", "without", "with"] {
                let count = choices.byte() % 8;
                if count < 5 {
                    let values: Vec<_> = (0..count % 4).map(|_| any_value(choices)).collect();
                    let _ = write!(text, ", {words} = [{}]", values.join(", "));
                }
            }
            text.push_str(" }, ");
        }
        text.push_str("]\n");
    }
    text
}

fn any_value(choices: &mut Choices<'_>) -> String {
    match choices.byte() {
        0..=0x1F => format!("{:?}", choices.pick(CONSTANTS).0),
        byte @ 0x20..=0xEF => choices
            .pick(&[0, 1, 2, 3, 4, 6, 8, 0x8000_0000, u32::MAX, byte.into()])
            .to_string(),
        _ => choices.u64().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Looks whether the inner filter of one policy is what the words of another say.
    fn compare(compiled: &str, said: &str) {
        let program = compile(compiled, Filter::Inner).expect("it is sound");
        let words: Table = said.parse().expect("it is TOML");
        let all = entries(&words, "always");
        check(&program, &all, &all, &words);
    }

    #[test]
    fn a_filter_that_allows_more_than_the_words_is_seen() {
        let policy = |condition: &str| {
            let entry = "[[always]]\ncalls = [\"mmap\"]\nwhy = \"x\"\nargs = [";
            format!("{entry}{condition}]")
        };
        let words = policy("{ index = 2, without = [\"PROT_EXEC\"] }");
        compare(&words, &words);
        for other in [
            "",
            "{ index = 3, without = [4] }",
            "{ index = 2, without = [2] }",
        ] {
            let compiled = policy(other);
            assert!(
                catch_unwind(|| compare(&compiled, &words)).is_err(),
                "{other}"
            );
        }
    }
}
