//! Programs started by the real agent: what they get, how they end, and what the host hears of it.

mod host;

use cloche_proto::message::{exec_flags, ToAgent, ToHost};
use host::Host;

/// The exit status, both output streams and the working directory are the program's own.
#[test]
fn runs_a_program() {
    let mut host = Host::start();
    let mut exec = host.shell("echo out; echo err >&2; pwd; exit 7");
    exec.cwd = b"/usr".to_vec();
    let (end, out, err) = host.run(&exec);
    assert_eq!(end, (0, 7));
    assert_eq!(out, b"out\n/usr\n");
    assert_eq!(err, b"err\n");
}

/// Standard input arrives whole, binary bytes and its end included.
#[test]
fn standard_input_ends() {
    let mut host = Host::start();
    let exec = host.request(&["cat"]);
    let bytes: Vec<u8> = (0..=255).cycle().take(700_001).collect();
    host.exec(&exec);
    host.feed(exec.stdin, &bytes, true);
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 0));
    assert!(out == bytes);
}

/// A program that dies by a signal is reported with that signal, by the host's doing or its own.
#[test]
fn signals_are_reported() {
    let mut host = Host::start();
    let exec = host.shell("kill -SEGV $$");
    assert_eq!(host.run(&exec).0, (1, 11));
    let exec = host.request(&["sleep", "1000"]);
    host.exec_started(&exec);
    host.send(&ToAgent::Signal {
        job: exec.job,
        signo: 15,
    });
    assert_eq!(host.finish(&exec).0, (1, 15));
}

/// A signal reaches the whole process group, so also a shell's child.
#[test]
fn signal_reaches_the_group() {
    let mut host = Host::start();
    let exec = host.shell("sleep 1000 | sleep 1000");
    host.exec_started(&exec);
    host.send(&ToAgent::Signal {
        job: exec.job,
        signo: 9,
    });
    assert_eq!(host.finish(&exec).0, (1, 9));
}

/// What cannot be started fails with the exact error number and the step.
#[test]
fn failures_are_exact() {
    let mut host = Host::start();
    let missing = host.request(&["no-such-program-here"]);
    assert_eq!(
        host.failure(&missing),
        (2, "exec no-such-program-here".into())
    );
    let directory = host.request(&["/usr"]);
    assert_eq!(host.failure(&directory).0, 13);
    let mut nowhere = host.request(&["true"]);
    nowhere.cwd = b"/no/such/place".to_vec();
    assert_eq!(host.failure(&nowhere), (2, "cwd /no/such/place".into()));
    let mut zero = host.request(&["true"]);
    zero.argv.push(b"a\0b".to_vec());
    assert_eq!(host.failure(&zero).0, 22);
    let text = host.request(&["/etc/hostname"]);
    assert!(matches!(host.failure(&text).0, 13 | 8));
    // And after all this the agent still runs programs.
    let exec = host.request(&["true"]);
    assert_eq!(host.run(&exec).0, (0, 0));
}

/// The program sees its arguments, environment and mask as they were sent, and no descriptors but its own.
#[test]
fn environment_is_exact() {
    let mut host = Host::start();
    let mut exec = host.shell("printf '%s|' \"$@\" \"$X\"; umask; ls /proc/self/fd | wc -l; trap");
    exec.argv
        .extend([&b"sh"[..], b"a b", b"", b"\xff\n"].map(<[u8]>::to_vec));
    exec.env.push(b"X=\xfe'".to_vec());
    exec.umask = 0o027;
    let (end, out, err) = host.run(&exec);
    assert_eq!((end, err), ((0, 0), vec![]));
    // ls has one more than the three, for the directory it reads.
    assert_eq!(out, b"a b||\xff\n|\xfe'|0027\n4\n");
}

/// The program's signal mask and ignored signals are empty.
#[test]
fn signal_state_is_clean() {
    let mut host = Host::start();
    let exec = host.request(&["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]);
    let (_, out, _) = host.run(&exec);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), 2);
    for line in text.lines() {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
}

/// Streams with the id 0 are /dev/null, and one pipe serves both outputs when their ids are equal.
#[test]
fn missing_and_shared_streams() {
    let mut host = Host::start();
    let mut exec = host.shell("cat; echo one; echo two >&2; echo three");
    exec.stdin = 0;
    exec.stderr = exec.stdout;
    assert_eq!(host.run(&exec).1, b"one\ntwo\nthree\n");
    let mut exec = host.shell("echo lost; echo kept >&2");
    exec.stdout = 0;
    let (_, _, err) = host.run(&exec);
    assert_eq!(err, b"kept\n");
}

/// When the host stops reading, an endless writer gets SIGPIPE.
#[test]
fn stop_is_sigpipe() {
    let mut host = Host::start();
    let exec = host.request(&["yes"]);
    host.exec_started(&exec);
    host.wait_for(|host| host.output[&exec.stdout].len() > 100);
    host.mux.stop(exec.stdout);
    assert_eq!(host.finish(&exec).0, (1, 13));
}

/// When a program closes its standard input, the host is told although nothing is being written.
#[test]
fn closed_input_is_told() {
    let mut host = Host::start();
    let exec = host.shell("echo closing; exec 0<&-; exec sleep 1000");
    host.exec_started(&exec);
    let stdin = exec.stdin;
    host.wait_for(|host| !host.mux.knows(stdin));
    host.send(&ToAgent::Signal {
        job: exec.job,
        signo: 9,
    });
    assert_eq!(host.finish(&exec).1, b"closing\n");
}

/// A program whose output nobody reads is held up by the credit, and everything arrives once it is read.
#[test]
fn unread_output_waits() {
    let mut host = Host::start();
    let exec = host.shell("head -c 3000000 /dev/zero");
    host.unread.insert(exec.stdout);
    host.exec_started(&exec);
    let other = host.shell("head -c 1000000 /dev/zero");
    let (end, out, _) = host.run(&other);
    assert_eq!((end, out.len()), ((0, 0), 1_000_000));
    assert!(host.mux.peek(exec.stdout).len() <= 262_144);
    assert!(host.take(|m| matches!(m, ToHost::Exited { .. })).is_none());
    host.unread.clear();
    // What waits is taken at the next turn that brings something.
    let other = host.request(&["true"]);
    host.run(&other);
    let (end, out, _) = host.finish(&exec);
    assert_eq!((end, out.len()), ((0, 0), 3_000_000));
}

/// Without LINGER the output ends with the program, although a background process still holds it; with LINGER it ends
/// with the last who holds it.
#[test]
fn background_processes() {
    let script = "(read line; echo late) <&3 & echo early; exit 3";
    for linger in [false, true] {
        let mut host = Host::start();
        let mut exec = host.shell(&format!("exec 3<&0; {script}"));
        if linger {
            exec.flags |= exec_flags::LINGER;
        }
        host.exec_started(&exec);
        let id = exec.job;
        host.expect(|m| matches!(m, ToHost::Exited { job, value: 3, .. } if *job == id));
        if linger {
            host.feed(exec.stdin, b"go\n", true);
        }
        let (stdout, stderr) = (exec.stdout, exec.stderr);
        host.wait_for(|host| !host.mux.knows(stdout) && !host.mux.knows(stderr));
        let expected: &[u8] = if linger { b"early\nlate\n" } else { b"early\n" };
        assert_eq!(host.output[&stdout], expected);
    }
}

/// The program, and what it starts, ignores the signals it was given so and no other, and has its niceness; the agent and
/// the next program have not.
#[test]
fn ignored_signals_and_niceness() {
    let mut host = Host::start();
    let script = "grep SigIgn /proc/self/status; nice; kill -HUP $$; kill -USR1 $$";
    let mut exec = host.shell(script);
    exec.ignored = 1 << 63 | 1;
    let own = {
        let other = host.request(&["nice"]);
        host.run(&other).1
    };
    let own: u8 = String::from_utf8_lossy(&own).trim().parse().expect("0 up");
    exec.nice = 19;
    let (end, out, _) = host.run(&exec);
    assert_eq!(end, (1, 10));
    let out = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(out, "SigIgn:\t8000000000000001\n19\n");
    let other = host.shell("grep SigIgn /proc/self/status; nice");
    let (end, out, _) = host.run(&other);
    assert_eq!(end, (0, 0));
    let out = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(out, format!("SigIgn:\t0000000000000000\n{own}\n"));
}

/// Stopping and going on are told, for the job's own program.
#[test]
fn stop_and_continue_are_told() {
    let mut host = Host::start();
    let exec = host.request(&["sleep", "1000"]);
    host.exec_started(&exec);
    let id = exec.job;
    for signal in [19, 20] {
        host.send(&ToAgent::Signal {
            job: id,
            signo: signal,
        });
        let stopped = host.expect(|m| matches!(m, ToHost::Stopped { .. }));
        assert_eq!(
            stopped,
            ToHost::Stopped {
                job: id,
                signo: signal
            }
        );
        host.send(&ToAgent::Signal { job: id, signo: 18 });
        assert_eq!(
            host.expect(|m| matches!(m, ToHost::Continued { .. })),
            ToHost::Continued { job: id }
        );
    }
    host.send(&ToAgent::Signal { job: id, signo: 9 });
    assert_eq!(host.finish(&exec).0, (1, 9));
}

/// There are at most 96 jobs; the next fails, and there is room again when one has ended.
#[test]
fn jobs_are_bounded() {
    let mut host = Host::start();
    let mut jobs = Vec::new();
    for _ in 0..96 {
        let exec = host.request(&["cat"]);
        host.exec(&exec);
        jobs.push(exec);
    }
    let one_more = host.request(&["true"]);
    assert_eq!(host.failure(&one_more), (11, "number of jobs".into()));
    for exec in &jobs {
        host.feed(exec.stdin, b"x", true);
    }
    for exec in &jobs {
        let (end, out, _) = host.finish(exec);
        assert_eq!((end, out), ((0, 0), b"x".to_vec()));
    }
    let exec = host.request(&["true"]);
    assert_eq!(host.run(&exec).0, (0, 0));
}

/// A hundred thousand arguments, a program may have as many as its kernel takes.
#[test]
fn many_arguments() {
    let mut host = Host::start();
    let mut exec = host.shell("echo $#");
    exec.argv.push(b"sh".to_vec());
    exec.argv.extend((0..100_000).map(|_| b"x".to_vec()));
    assert_eq!(host.run(&exec).1, b"100000\n");
}

/// Orphans are reaped: a job that leaves thousands of dead children behind leaves no zombies.
#[test]
fn orphans_are_reaped() {
    let mut host = Host::start();
    let agent = host.agent.id();
    let exec = host.shell("i=0; while [ $i -lt 2000 ]; do (true &); i=$((i+1)); done");
    assert_eq!(host.run(&exec).0, (0, 0));
    let children = format!("cat /proc/{agent}/task/{agent}/children");
    // The job that looks is the only child there is.
    let mut count = usize::MAX;
    while count > 1 {
        let look = host.shell(&children);
        let (_, out, _) = host.run(&look);
        count = out.split(|b| *b == b' ').filter(|w| !w.is_empty()).count();
    }
}

/// SYNC is answered, and POWEROFF ends an agent that is no guest's first process with status 0.
#[test]
fn sync_and_poweroff() {
    let mut host = Host::start();
    host.send(&ToAgent::Sync { seq: 5 });
    assert_eq!(
        host.expect(|m| matches!(m, ToHost::Synced { .. })),
        ToHost::Synced { seq: 5 }
    );
    host.send(&ToAgent::Poweroff);
    host.write_all();
    assert_eq!(host.agent.wait().unwrap().code(), Some(0));
}

/// The file the host has found is executed without a search; where it is not, the search goes on as without it.
#[test]
fn tries_the_named_file_first() {
    let mut host = Host::start();
    for (program, said) in [
        (&b"/bin/echo"[..], &b"-c echo searched\n"[..]),
        (b"/no/such", b"searched\n"),
    ] {
        let mut exec = host.shell("echo searched");
        exec.program = program.to_vec();
        assert_eq!(host.run(&exec).1, said);
    }
}
