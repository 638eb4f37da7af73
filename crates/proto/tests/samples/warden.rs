//! Samples of what the supervisor, the warden and the keeper say to each other.

use cloche_proto::keeper::{Mode, ToKeeper};
use cloche_proto::warden::{
    bind_flags, jail_flags, tmpfs_flags, Jail, Rlimit, RootOp, Spawn, ToSupervisor, ToWarden,
    FD_UNNAMED, ID_KEEP,
};

use super::{bytes, Named};

fn root() -> Vec<RootOp> {
    vec![
        RootOp::Dir {
            path: bytes("/tmp"),
            mode: 0o1777,
        },
        RootOp::Bind {
            source: bytes("/usr"),
            path: bytes("/usr"),
            flags: bind_flags::READ_ONLY | bind_flags::NODEV | bind_flags::RECURSIVE,
        },
        RootOp::File {
            path: bytes("/etc/passwd"),
            mode: 0o644,
            content: bytes("root:x:0:0::/:/bin/sh\n"),
        },
        RootOp::Symlink {
            target: bytes("usr/lib"),
            path: bytes("/lib"),
        },
        RootOp::Tmpfs {
            path: bytes("/run"),
            size: 1 << 33,
            mode: 0o755,
            flags: tmpfs_flags::HUGE_PAGES,
        },
        RootOp::Proc {
            path: bytes("/proc"),
        },
        RootOp::Dev {
            path: bytes("/dev"),
        },
        RootOp::BindFd {
            fd_index: 3,
            path: vec![b'/', 0xFF],
            flags: bind_flags::NOSUID | bind_flags::NOEXEC,
        },
    ]
}

fn jail() -> Jail {
    Jail {
        namespaces: 0,
        uid: ID_KEEP,
        gid: ID_KEEP,
        keep_caps: 0,
        flags: 0,
        hostname: vec![],
        cwd: bytes("/"),
        rlimits: vec![],
        seccomp: vec![],
        root: vec![],
    }
}

pub fn packets() -> Vec<Named> {
    let plain = Spawn {
        id: 1,
        name: bytes("vmm"),
        argv: vec![bytes("/usr/bin/true")],
        env: vec![],
        fds: vec![],
        exe_fd: false,
        cgroup: false,
        jail: Jail {
            flags: jail_flags::KEEP_ROOT,
            ..jail()
        },
    };
    let jailed = Spawn {
        id: 2,
        name: bytes("fs"),
        argv: vec![bytes("cloche-fs"), bytes("--fd=3"), vec![0xFF]],
        env: vec![bytes("LC_ALL=C")],
        fds: vec![0, 2, 3, FD_UNNAMED],
        exe_fd: true,
        cgroup: true,
        jail: Jail {
            namespaces: 0x0002_0000 | 0x4000_0000,
            uid: 1000,
            gid: 1001,
            keep_caps: (1 << 40) | 2,
            flags: jail_flags::NO_NEW_PRIVS | jail_flags::NOT_DUMPABLE,
            hostname: bytes("jail"),
            cwd: bytes("/tmp"),
            rlimits: vec![Rlimit {
                resource: 7,
                soft: 1024,
                hard: u64::MAX,
            }],
            seccomp: vec![6, 0, 0, 0, 0, 0, 0xFF, 0x7F],
            root: root(),
        },
    };
    let to_warden = [
        (
            "spawn in the warden's root",
            ToWarden::Spawn(Box::new(plain)),
        ),
        (
            "spawn with every root operation",
            ToWarden::Spawn(Box::new(jailed)),
        ),
        ("kill", ToWarden::Kill { id: 2, signo: 9 }),
        ("shutdown", ToWarden::Shutdown),
        (
            "mount",
            ToWarden::Mount {
                request: 7,
                id: 2,
                path: b"/stage/12".to_vec(),
                flags: 23,
            },
        ),
        (
            "unmount",
            ToWarden::Unmount {
                request: 8,
                id: 2,
                path: b"/stage/12".to_vec(),
            },
        ),
    ];
    let to_supervisor = [
        ("ready", ToSupervisor::Ready),
        ("spawned", ToSupervisor::Spawned { id: 2, pid: 5 }),
        (
            "failed",
            ToSupervisor::Failed {
                id: 2,
                errno: 1,
                what: bytes("mount /usr"),
            },
        ),
        (
            "exited",
            ToSupervisor::Exited {
                id: 2,
                kind: 1,
                value: 15,
            },
        ),
        (
            "done",
            ToSupervisor::Done {
                request: 7,
                errno: 0,
                what: Vec::new(),
            },
        ),
    ];
    let to_warden = to_warden.map(|(name, message)| (name, message.encode().unwrap()));
    let to_supervisor = to_supervisor.map(|(name, message)| (name, message.encode().unwrap()));
    to_warden.into_iter().chain(to_supervisor).collect()
}

pub fn keeper() -> Vec<Named> {
    let mode = |first: u8| Mode(std::array::from_fn(|at| first + at as u8));
    let raw = ToKeeper::Raw {
        saved: mode(1),
        raw: mode(101),
    };
    [("raw", raw), ("restored", ToKeeper::Restored)]
        .into_iter()
        .map(|(name, message)| (name, message.encode().unwrap()))
        .collect()
}
