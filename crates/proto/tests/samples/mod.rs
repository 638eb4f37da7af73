//! Samples of everything that goes over the wire, and their fields as JSON.

mod fields;
mod warden;

use cloche_proto::frame::{preface, Attach, Attached, Frame, TableEntry, VERSION, ZERO_KEY};
use cloche_proto::message::{exec_flags, Exec, Step, ToAgent, ToHost};

pub use fields::{
    frame_fields, to_agent_fields, to_host_fields, to_keeper_fields, to_supervisor_fields,
    to_warden_fields,
};
pub use warden::{keeper, packets};

type Named = (&'static str, Vec<u8>);

fn frame(name: &'static str, frame: &Frame<'_>) -> Named {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    (name, bytes)
}

pub fn frames() -> Vec<Named> {
    let key = *b"00112233445566778899aabbccddeeff";
    let entry = |stream, received, consumed, limit| TableEntry {
        stream,
        received,
        consumed,
        limit,
    };
    let attach = |version, table| {
        Frame::Attach(Attach {
            version,
            nonce: key,
            table,
        })
    };
    let attached = |fresh, table| {
        Frame::Attached(Attached {
            version: VERSION,
            session: key,
            fresh,
            table,
        })
    };
    let window = |consumed, limit, fin| Frame::Window {
        stream: 3,
        consumed,
        limit,
        fin,
    };
    let eof = |offset, aborted| Frame::Eof {
        stream: 5,
        offset,
        aborted,
    };
    let all_bytes: Vec<u8> = (0..=255).collect();
    vec![
        ("first preface", preface(&ZERO_KEY).to_vec()),
        ("preface", preface(&key).to_vec()),
        frame("attach", &attach(VERSION, vec![entry(1, 0, 0, 262_144)])),
        frame(
            "attach again",
            &attach(
                VERSION,
                vec![
                    entry(1, 4711, 4711, 266_855),
                    entry(3, (1 << 40) + 100, 1 << 40, (1 << 40) + 262_144),
                ],
            ),
        ),
        frame("attach of another version", &attach(2, vec![])),
        frame(
            "attached first",
            &attached(true, vec![entry(0, 0, 0, 262_144)]),
        ),
        frame(
            "attached again",
            &attached(
                false,
                vec![entry(0, 70_000, 70_000, 332_144), entry(2, 9, 5, 262_149)],
            ),
        ),
        frame(
            "data of one byte",
            &Frame::Data {
                stream: 0,
                offset: 0,
                bytes: b"\n",
            },
        ),
        frame(
            "data of every byte",
            &Frame::Data {
                stream: u32::MAX,
                offset: 0x0102_0304_0506_0708,
                bytes: &all_bytes,
            },
        ),
        frame("first window", &window(0, 262_144, false)),
        frame("window", &window(65_536, 327_680, false)),
        frame("last window", &window(12, 262_156, true)),
        frame("eof", &eof(12, false)),
        frame("aborted eof", &eof(0, true)),
        frame("stop", &Frame::Stop { stream: 7 }),
    ]
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn steps() -> Vec<Step> {
    vec![
        Step::BindDevice {
            name: bytes("virtio-mmio.6"),
        },
        Step::Mkdir {
            path: bytes("/home/user"),
            mode: 0o700,
            uid: 1000,
            gid: 1001,
        },
        Step::Mount {
            fstype: bytes("virtiofs"),
            source: bytes("system"),
            target: bytes("/sysroot"),
            flags: 1,
            data: bytes("dax=never"),
        },
        Step::Mount {
            fstype: vec![],
            source: bytes("/a"),
            target: bytes("/b"),
            flags: 0x1_0000_0000 + 4096,
            data: vec![],
        },
        Step::SwitchRoot {
            path: bytes("/sysroot"),
        },
        Step::WriteFile {
            path: bytes("/etc/machine-id"),
            mode: 0o444,
            uid: 0,
            gid: 0,
            content: vec![0, 255, 10],
        },
        Step::Symlink {
            target: bytes("/proc/mounts"),
            path: bytes("/etc/mtab"),
        },
        Step::CopyTree {
            from: bytes("/etc/skel"),
            to: bytes("/home/user"),
            uid: 1000,
            gid: 1001,
        },
        Step::Hostname {
            name: bytes("cloche"),
        },
        Step::Clock {
            realtime_ns: 1_700_000_000_123_456_789,
        },
        Step::Entropy {
            seed: (0..32).collect(),
        },
        Step::Loopback,
        Step::Interface {
            name: bytes("eth0"),
            address: 0x0A00_020F,
            prefix: 24,
            gateway: 0x0A00_0202,
        },
        Step::Sysctl {
            path: bytes("kernel/printk"),
            value: bytes("4"),
        },
        Step::Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        },
        Step::WaitPath {
            path: bytes("/dev/vda"),
            timeout_ms: 5000,
        },
        Step::Unmount {
            target: bytes("/srv/data"),
            flags: 8,
        },
        Step::Freeze,
        Step::Thaw,
        Step::CopyOnce {
            from: bytes("/home/user"),
            to: bytes("/disk/upper/home/user"),
            uid: 1000,
            gid: 1001,
        },
        Step::Settle {
            path: bytes("/disk"),
        },
        Step::CheckPlace {
            root: bytes("/srv/data"),
            path: bytes("a/b"),
        },
        Step::PutFirst {
            path: bytes("/etc/passwd"),
            mode: 0o644,
            content: bytes("me:x:1000:1000::/home/me:/bin/sh\n"),
        },
    ]
}

fn exec() -> Exec {
    Exec {
        job: 1,
        stdin: 2,
        stdout: 3,
        stderr: 5,
        flags: 0,
        rows: 0,
        cols: 0,
        uid: 1000,
        gid: 1001,
        umask: 0o022,
        groups: vec![],
        pids_max: 0,
        cwd: bytes("/"),
        argv: vec![bytes("true")],
        env: vec![],
        program: vec![],
        keys: 0,
        ignored: 0,
        nice: 0,
    }
}

pub fn messages() -> Vec<Named> {
    let exited = |kind, value, oom| ToHost::Exited {
        job: 1,
        kind,
        value,
        oom,
        user_ns: 1_500_000_000,
        sys_ns: 2_000_000,
        maxrss_bytes: 1 << 33,
    };
    let terminal = Exec {
        job: 7,
        stdin: 8,
        stdout: 9,
        stderr: 0,
        flags: exec_flags::TTY | exec_flags::LINGER,
        rows: 24,
        cols: 80,
        groups: vec![4, 27, 1001],
        pids_max: 512,
        cwd: vec![b'/', 0xFF],
        argv: vec![bytes("sh"), bytes("-c"), vec![], vec![0xFE, b'\n', b'\'']],
        env: vec![bytes("PATH=/usr/bin:/bin"), vec![b'X', b'=', 0x80]],
        program: vec![b'/', 0xFD],
        ..exec()
    };
    let typed = Exec {
        keys: 10,
        stderr: 5,
        ignored: 1 << 63 | 3,
        nice: 19,
        ..terminal.clone()
    };
    let traced = Exec {
        stdin: 0,
        stdout: 3,
        stderr: 3,
        flags: exec_flags::STRACE,
        ..exec()
    };
    let to_agent = [
        (
            "setup without steps",
            ToAgent::Setup {
                seq: 0,
                steps: vec![],
            },
        ),
        (
            "setup with every step",
            ToAgent::Setup {
                seq: 1,
                steps: steps(),
            },
        ),
        ("exec", ToAgent::Exec(Box::new(exec()))),
        ("exec on a terminal", ToAgent::Exec(Box::new(terminal))),
        (
            "exec on a terminal beside its streams, signals ignored, nice",
            ToAgent::Exec(Box::new(typed)),
        ),
        (
            "exec traced, one pipe for both outputs",
            ToAgent::Exec(Box::new(traced)),
        ),
        ("signal", ToAgent::Signal { job: 7, signo: 15 }),
        (
            "resize",
            ToAgent::Resize {
                job: 7,
                rows: 50,
                cols: 132,
            },
        ),
        ("poweroff", ToAgent::Poweroff),
        ("sync", ToAgent::Sync { seq: 3 }),
    ];
    let to_host = [
        (
            "ready",
            ToHost::Ready {
                agent_version: bytes("0.1.0"),
                kernel: bytes("6.12.48"),
                uptime_ns: 312_000_000,
            },
        ),
        ("setup done", ToHost::SetupDone { seq: 1 }),
        (
            "setup failed",
            ToHost::SetupFailed {
                seq: 1,
                step: 2,
                errno: 2,
                what: bytes("mount /sysroot"),
            },
        ),
        ("started", ToHost::Started { job: 1, pid: 77 }),
        (
            "failed",
            ToHost::Failed {
                job: 1,
                errno: 2,
                what: bytes("exec no-such-program"),
            },
        ),
        ("exited with a status", exited(0, 3, false)),
        ("exited by a signal, out of memory", exited(1, 9, true)),
        ("stopped", ToHost::Stopped { job: 7, signo: 20 }),
        ("continued", ToHost::Continued { job: 7 }),
        (
            "log",
            ToHost::Log {
                level: 2,
                text: vec![b'x', 0x1B, 0xFF],
            },
        ),
        ("synced", ToHost::Synced { seq: 3 }),
    ];
    let to_agent = to_agent.map(|(name, message)| (name, message.encode().unwrap()));
    let to_host = to_host.map(|(name, message)| (name, message.encode().unwrap()));
    to_agent.into_iter().chain(to_host).collect()
}
