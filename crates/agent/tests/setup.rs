//! The steps of SETUP that need no guest of their own.

mod host;

use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use cloche_proto::message::{Step, ToAgent, ToHost};
use host::Host;

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("cloche-agent-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    fn path(&self, name: &str) -> Vec<u8> {
        self.0.join(name).into_os_string().into_encoded_bytes()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn own_ids() -> (u32, u32) {
    // SAFETY: no arguments.
    unsafe { (libc::getuid(), libc::getgid()) }
}

fn set_up(host: &mut Host, seq: u32, steps: Vec<Step>) -> ToHost {
    host.send(&ToAgent::Setup { seq, steps });
    host.expect(|m| matches!(m, ToHost::SetupDone { .. } | ToHost::SetupFailed { .. }))
}

/// Directories, files, links and trees are made with their modes, and what was there is replaced.
#[test]
fn makes_files() {
    let scratch = Scratch::new("files");
    let (uid, gid) = own_ids();
    fs::create_dir_all(scratch.0.join("from/sub")).unwrap();
    fs::write(scratch.0.join("from/sub/file"), "content").unwrap();
    fs::set_permissions(
        scratch.0.join("from/sub/file"),
        fs::Permissions::from_mode(0o750),
    )
    .unwrap();
    symlink("nowhere", scratch.0.join("from/link")).unwrap();
    symlink("/dev/null", scratch.0.join("replaced")).unwrap();
    let file = |name: &str, content: &[u8]| Step::WriteFile {
        path: scratch.path(name),
        mode: 0o640,
        uid,
        gid,
        content: content.to_vec(),
    };
    let steps = vec![
        Step::Mkdir {
            path: scratch.path("a/b/c"),
            mode: 0o1777,
            uid,
            gid,
        },
        file("a/b/file", b"old"),
        file("a/b/file", b"new"),
        file("replaced", b"no link"),
        Step::Symlink {
            target: b"first".to_vec(),
            path: scratch.path("link"),
        },
        Step::Symlink {
            target: b"second".to_vec(),
            path: scratch.path("link"),
        },
        Step::CopyTree {
            from: scratch.path("from"),
            to: scratch.path("a"),
            uid,
            gid,
        },
        Step::CopyTree {
            from: scratch.path("missing"),
            to: scratch.path("a"),
            uid,
            gid,
        },
    ];
    let mut host = Host::start();
    assert_eq!(set_up(&mut host, 9, steps), ToHost::SetupDone { seq: 9 });
    let mode = |name: &str| fs::metadata(scratch.0.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a/b/c"), mode("a/b")), (0o1777, 0o755));
    assert_eq!(mode("a/b/file"), 0o640);
    assert_eq!(fs::read(scratch.0.join("a/b/file")).unwrap(), b"new");
    assert!(fs::symlink_metadata(scratch.0.join("replaced"))
        .unwrap()
        .is_file());
    let link = fs::read_link(scratch.0.join("link")).unwrap();
    assert_eq!(link, PathBuf::from("second"));
    assert_eq!(mode("a/sub/file"), 0o750);
    assert_eq!(fs::read(scratch.0.join("a/sub/file")).unwrap(), b"content");
    let link = fs::read_link(scratch.0.join("a/link")).unwrap();
    assert_eq!(link, PathBuf::from("nowhere"));
}

/// A directory is copied under its name once: what is there already is left as it is, and half of one that was begun
/// before is not taken for it.
#[test]
fn a_directory_is_copied_once() {
    let scratch = Scratch::new("once");
    let (uid, gid) = own_ids();
    fs::create_dir_all(scratch.0.join("from/sub")).unwrap();
    fs::write(scratch.0.join("from/sub/file"), b"content").unwrap();
    fs::set_permissions(scratch.0.join("from"), Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(scratch.0.join("copy.new")).unwrap();
    fs::write(scratch.0.join("copy.new/half"), b"half").unwrap();
    let step = || Step::CopyOnce {
        from: scratch.path("from"),
        to: scratch.path("copy"),
        uid,
        gid,
    };
    let mut host = Host::start();
    assert_eq!(
        set_up(&mut host, 1, vec![step()]),
        ToHost::SetupDone { seq: 1 }
    );
    let copy = scratch.0.join("copy");
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read(copy.join("sub/file")).unwrap(), b"content");
    assert!(!copy.join("half").exists());
    assert!(!scratch.0.join("copy.new").exists());
    fs::write(copy.join("sub/file"), b"mine").unwrap();
    assert_eq!(
        set_up(&mut host, 2, vec![step()]),
        ToHost::SetupDone { seq: 2 }
    );
    assert_eq!(fs::read(copy.join("sub/file")).unwrap(), b"mine");
}

/// What is no directory cannot settle, and the step says so.
#[test]
fn nothing_settles_where_nothing_is_mounted() {
    let scratch = Scratch::new("settle");
    let step = Step::Settle {
        path: scratch.path("missing"),
    };
    let answer = set_up(&mut Host::start(), 1, vec![step]);
    assert!(
        matches!(answer, ToHost::SetupFailed { errno: 2, .. }),
        "{answer:?}"
    );
}

/// The first step that fails ends the set-up, and is named with its index and error number.
#[test]
fn first_failure_ends_it() {
    let scratch = Scratch::new("failure");
    let (uid, gid) = own_ids();
    let file = |path| Step::WriteFile {
        path,
        mode: 0o600,
        uid,
        gid,
        content: vec![],
    };
    let steps = vec![
        file(scratch.path("one")),
        file(scratch.path("no/such/place")),
        file(scratch.path("two")),
    ];
    let mut host = Host::start();
    let answer = set_up(&mut host, 3, steps);
    let what = [b"write ", scratch.path("no/such/place").as_slice()].concat();
    assert_eq!(
        answer,
        ToHost::SetupFailed {
            seq: 3,
            step: 1,
            errno: 2,
            what
        }
    );
    assert!(scratch.0.join("one").exists() && !scratch.0.join("two").exists());
}

/// Limits hold for every program started later.
#[test]
fn limits_reach_programs() {
    let mut host = Host::start();
    let steps = vec![Step::Rlimit {
        resource: 7,
        soft: 100,
        hard: 200,
    }];
    assert_eq!(set_up(&mut host, 1, steps), ToHost::SetupDone { seq: 1 });
    let exec = host.shell("ulimit -Sn; ulimit -Hn");
    assert_eq!(host.run(&exec).1, b"100\n200\n");
    let wrong = vec![Step::Rlimit {
        resource: 99,
        soft: 0,
        hard: 0,
    }];
    let answer = set_up(&mut host, 2, wrong);
    assert!(matches!(answer, ToHost::SetupFailed { errno: 22, .. }));
}

/// WAIT_PATH ends when the path appears, also where its directory is missing at first; programs run on meanwhile. It
/// fails when its time is over.
#[test]
fn waits_for_a_path() {
    let scratch = Scratch::new("wait");
    let mut host = Host::start();
    let script = format!(
        "read x; mkdir -p {0}/deep/er; read y; : > {0}/deep/er/file",
        scratch.0.display()
    );
    let exec = host.shell(&script);
    host.exec_started(&exec);
    let wait = |name: &str, timeout_ms| {
        vec![Step::WaitPath {
            path: scratch.path(name),
            timeout_ms,
        }]
    };
    host.send(&ToAgent::Setup {
        seq: 1,
        steps: wait("deep/er/file", 60_000),
    });
    host.feed(exec.stdin, b"\n\n", true);
    let done = host.expect(|m| matches!(m, ToHost::SetupDone { .. } | ToHost::SetupFailed { .. }));
    assert_eq!(done, ToHost::SetupDone { seq: 1 });
    assert_eq!(host.finish(&exec).0, (0, 0));
    let answer = set_up(&mut host, 2, wait("never", 1));
    assert!(matches!(
        answer,
        ToHost::SetupFailed {
            seq: 2,
            errno: libc_errno::ETIMEDOUT,
            ..
        }
    ));
}

mod libc_errno {
    /// As it goes over the wire.
    pub const ETIMEDOUT: u32 = libc::ETIMEDOUT as u32;
}

/// A kernel setting that does not exist is no error, one outside /proc/sys is refused.
#[test]
fn kernel_settings() {
    let mut host = Host::start();
    let setting = |path: &str| {
        vec![Step::Sysctl {
            path: path.as_bytes().to_vec(),
            value: b"1".to_vec(),
        }]
    };
    let answer = set_up(&mut host, 1, setting("kernel/no_such_setting"));
    assert_eq!(answer, ToHost::SetupDone { seq: 1 });
    for (seq, path) in [(2, "../self/oom_score_adj"), (3, "/etc/hostname")] {
        let answer = set_up(&mut host, seq, setting(path));
        assert!(matches!(answer, ToHost::SetupFailed { errno: 22, .. }));
    }
}

/// A request that cannot be read is answered, and the next is done.
#[test]
fn unreadable_requests_are_answered() {
    let mut host = Host::start();
    // SETUP with one step of an unknown kind.
    let body = [&[1u8, 7, 0, 0, 0, 1, 0, 0, 0, 99, 0, 0, 0, 0][..]].concat();
    let mut bytes = 14u32.to_le_bytes().to_vec();
    bytes.extend(body);
    assert_eq!(host.mux.send(0, &bytes), bytes.len());
    let answer = host.expect(|m| matches!(m, ToHost::SetupFailed { .. }));
    assert!(matches!(answer, ToHost::SetupFailed { seq: 7, .. }));
    assert_eq!(set_up(&mut host, 8, vec![]), ToHost::SetupDone { seq: 8 });
}

/// A program asked for together with a set-up that fails does not run, until another set-up has succeeded.
#[test]
fn failed_setup_stops_programs() {
    let mut host = Host::start();
    let wrong = Step::Rlimit {
        resource: 99,
        soft: 0,
        hard: 0,
    };
    host.send(&ToAgent::Setup {
        seq: 1,
        steps: vec![wrong],
    });
    let exec = host.shell("echo ran");
    host.send(&ToAgent::Exec(Box::new(exec.clone())));
    host.expect(|m| matches!(m, ToHost::SetupFailed { seq: 1, .. }));
    let answer = host.expect(|m| matches!(m, ToHost::Failed { .. } | ToHost::Started { .. }));
    let what = b"set-up".to_vec();
    assert_eq!(
        answer,
        ToHost::Failed {
            job: exec.job,
            errno: libc::ECANCELED.unsigned_abs(),
            what
        }
    );
    assert_eq!(set_up(&mut host, 2, vec![]), ToHost::SetupDone { seq: 2 });
    let exec = host.shell("echo ran");
    assert_eq!(host.run(&exec).1, b"ran\n");
}

/// Lines are put before what a file holds, which keeps its mode; a link becomes a file, and what is no file is refused.
#[test]
fn puts_lines_first() {
    let scratch = Scratch::new("first");
    fs::write(scratch.0.join("passwd"), "theirs\n").unwrap();
    fs::set_permissions(scratch.0.join("passwd"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(scratch.0.join("elsewhere"), "kept\n").unwrap();
    symlink("elsewhere", scratch.0.join("link")).unwrap();
    fs::create_dir(scratch.0.join("directory")).unwrap();
    fs::write(scratch.0.join("long"), vec![b'x'; (1 << 20) + 1]).unwrap();
    let first = |name: &str| Step::PutFirst {
        path: scratch.path(name),
        mode: 0o600,
        content: b"mine\n".to_vec(),
    };
    let mut host = Host::start();
    let done = set_up(&mut host, 1, vec![first("passwd"), first("link")]);
    assert_eq!(done, ToHost::SetupDone { seq: 1 });
    let read = |name: &str| fs::read_to_string(scratch.0.join(name)).unwrap();
    assert_eq!(read("passwd"), "mine\ntheirs\n");
    let found = fs::metadata(scratch.0.join("passwd")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o640);
    assert_eq!(
        (read("link"), read("elsewhere")),
        ("mine\nkept\n".into(), "kept\n".into())
    );
    assert!(fs::symlink_metadata(scratch.0.join("link"))
        .unwrap()
        .is_file());
    for (seq, name) in [(2, "directory"), (3, "long")] {
        match set_up(&mut host, seq, vec![first(name)]) {
            ToHost::SetupFailed { errno, .. } => assert_eq!(errno, libc::EFBIG.unsigned_abs()),
            other => panic!("{other:?}"),
        }
    }
}
