//! Programs on a terminal of the real agent.

mod host;

use cloche_proto::message::{exec_flags, Exec, ToAgent, ToHost};
use host::Host;

fn start(script: &str) -> (Host, Exec) {
    let mut host = Host::start();
    let exec = Host::on_terminal(host.shell(script));
    host.exec_started(&exec);
    (host, exec)
}

fn wait_for_text(host: &mut Host, exec: &Exec, text: &str) {
    host.wait_for(|host| {
        let output = &host.output[&exec.stdout];
        String::from_utf8_lossy(output).contains(text)
    });
}

/// All three streams are one terminal of the size asked for, the program leads its foreground group, and its status is
/// its own.
#[test]
fn program_has_a_terminal() {
    let (mut host, exec) = start(
        "test -t 0 && test -t 1 && test -t 2 && stty size && tty | grep -o /dev/pts/ && \
         ps -o pgid=,tpgid= -p $$ | { read a b; test $a = $b && echo foreground; }; exit 5",
    );
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 5));
    assert_eq!(
        String::from_utf8_lossy(&out),
        "24 80\r\n/dev/pts/\r\nforeground\r\n"
    );
}

/// A new size reaches the program by SIGWINCH.
#[test]
fn resize_reaches_the_program() {
    let (mut host, exec) =
        start("trap 'stty size; exit' WINCH; echo waiting; while :; do sleep 0.01; done");
    wait_for_text(&mut host, &exec, "waiting");
    host.send(&ToAgent::Resize {
        job: exec.job,
        rows: 50,
        cols: 132,
    });
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 0));
    assert!(String::from_utf8_lossy(&out).ends_with("50 132\r\n"));
}

/// Ctrl-C interrupts, Ctrl-Z stops and is told, SIGCONT goes on and is told, and Ctrl-D is the end of the input.
#[test]
fn control_characters_work() {
    let (mut host, exec) = start("echo go; exec cat");
    let id = exec.job;
    wait_for_text(&mut host, &exec, "go");
    host.feed(exec.stdin, b"\x1a", false);
    let stopped = host.expect(|m| matches!(m, ToHost::Stopped { .. }));
    assert_eq!(stopped, ToHost::Stopped { job: id, signo: 20 });
    host.send(&ToAgent::Signal { job: id, signo: 18 });
    let continued = host.expect(|m| matches!(m, ToHost::Continued { .. }));
    assert_eq!(continued, ToHost::Continued { job: id });
    host.feed(exec.stdin, b"line\n\x04", false);
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 0));
    assert!(String::from_utf8_lossy(&out).contains("line\r\nline\r\n"));
    let (mut host, exec) = start("echo go; exec cat");
    wait_for_text(&mut host, &exec, "go");
    host.feed(exec.stdin, b"\x03", false);
    assert_eq!(host.finish(&exec).0, (1, 2));
}

/// The end of what the host types does not end the program, whose output still arrives.
#[test]
fn end_of_typing_is_no_hangup() {
    let (mut host, exec) = start("read x; echo got $x; stty size");
    host.feed(exec.stdin, b"word\n", true);
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 0));
    assert!(String::from_utf8_lossy(&out).ends_with("got word\r\n24 80\r\n"));
}

/// A large output directly before the end arrives whole.
#[test]
fn last_output_is_not_lost() {
    for _ in 0..20 {
        let (mut host, exec) = start("seq 1 20000");
        let (end, out, _) = host.finish(&exec);
        assert_eq!(end, (0, 0));
        let expected: String = (1..=20000).map(|n| format!("{n}\r\n")).collect();
        assert!(out == expected.as_bytes(), "{} bytes", out.len());
    }
}

/// A program that cannot be started fails like one on pipes, and a signal that comes early is not lost.
#[test]
fn failures_and_early_signals() {
    let mut host = Host::start();
    let missing = Host::on_terminal(host.request(&["no-such-program-here"]));
    assert_eq!(
        host.failure(&missing),
        (2, "exec no-such-program-here".into())
    );
    let exec = Host::on_terminal(host.request(&["sleep", "1000"]));
    host.exec(&exec);
    host.send(&ToAgent::Signal {
        job: exec.job,
        signo: 15,
    });
    assert_eq!(host.finish(&exec).0, (1, 15));
}

/// When the host stops reading, the program's terminal hangs up.
#[test]
fn stop_is_a_hangup() {
    let (mut host, exec) = start("exec yes");
    host.wait_for(|host| host.output[&exec.stdout].len() > 100);
    host.mux.stop(exec.stdout);
    let end = host.finish(&exec).0;
    assert!(matches!(end, (1, 1) | (0, 1)), "{end:?}");
}

/// With a background process on the terminal the output ends with the program; with LINGER it ends with the last
/// process.
#[test]
fn background_processes() {
    // The background process ignores the hangup, and waits for a line in a file system object that only it reads.
    let script = "trap '' HUP; (echo back; read x < $FIFO; echo late) & read y; echo front; exit 4";
    let fifo = std::env::temp_dir().join(format!("cloche-agent-test-{}", std::process::id()));
    for linger in [false, true] {
        std::fs::remove_file(&fifo).ok();
        let mut host = Host::start();
        let made = host.request(&["mkfifo", fifo.to_str().expect("a plain path")]);
        assert_eq!(host.run(&made).0, (0, 0));
        let mut exec = Host::on_terminal(host.shell(script));
        exec.env
            .push(format!("FIFO={}", fifo.display()).into_bytes());
        if linger {
            exec.flags |= exec_flags::LINGER;
        }
        host.exec_started(&exec);
        wait_for_text(&mut host, &exec, "back");
        host.feed(exec.stdin, b"\n", false);
        host.expect(|m| matches!(m, ToHost::Exited { value: 4, .. }));
        let stdout = exec.stdout;
        if linger {
            let open = host.shell(&format!("echo > {}", fifo.display()));
            assert_eq!(host.run(&open).0, (0, 0));
        }
        host.wait_for(|host| !host.mux.knows(stdout));
        let text = String::from_utf8_lossy(&host.output[&stdout]).into_owned();
        assert!(text.contains("front\r\n"), "{text}");
        assert_eq!(text.contains("late"), linger, "{text}");
        if !linger {
            let open = host.shell(&format!("echo > {}", fifo.display()));
            assert_eq!(host.run(&open).0, (0, 0));
        }
    }
    std::fs::remove_file(&fifo).ok();
}

/// A job whose stub is killed still ends, and is reported; when that came too early to say that it runs, as not
/// started.
#[test]
fn killed_stub_is_survived() {
    let mut host = Host::start();
    for script in [
        "read x; kill -9 $PPID; exec sleep 1000",
        "kill -9 $PPID; exec sleep 1000",
    ] {
        let exec = Host::on_terminal(host.shell(script));
        host.exec(&exec);
        host.feed(exec.stdin, b"\n", false);
        let end = host.expect(|m| matches!(m, ToHost::Exited { .. } | ToHost::Failed { .. }));
        match end {
            ToHost::Exited { kind, .. } => assert_eq!(kind, 1),
            ToHost::Failed { errno, .. } => assert_eq!(errno, libc::ECHILD.unsigned_abs()),
            other => panic!("{other:?}"),
        }
        host.abandon(&exec);
    }
    let exec = host.request(&["true"]);
    assert_eq!(host.run(&exec).0, (0, 0));
}

fn start_beside(script: &str) -> (Host, Exec) {
    let mut host = Host::start();
    let mut exec = Host::on_terminal(host.shell(script));
    exec.keys = exec.stdin + 2;
    host.exec_started(&exec);
    (host, exec)
}

/// A terminal beside the standard input: the program reads one and writes the other, and what is typed is not asked for, by
/// a program that uses it for nothing else; at its end all streams end.
#[test]
fn a_terminal_beside_the_standard_input() {
    let (mut host, exec) = start_beside(
        "test -t 0 || test -t 1 && test -t 2 && cat && ps -o tty= -p $$ | grep -o pts/; exit 4",
    );
    host.feed(exec.stdin, b"through the pipe\n", true);
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 4));
    assert_eq!(
        String::from_utf8_lossy(&out),
        "through the pipe\r\npts/\r\n"
    );
    assert_eq!(host.mux.room(exec.keys), 0);
    host.wait_for(|host| !host.mux.knows(exec.stdin) && !host.mux.knows(exec.keys));
    let again = host.request(&["true"]);
    assert_eq!(host.run(&again).0, (0, 0));
}

/// Keys are asked for before the output that follows when the program has set its terminal's mode, and reach it; its
/// standard input is what it was.
#[test]
fn keys_are_asked_for_by_a_mode() {
    let (mut host, exec) =
        start_beside("stty -echo <&1; echo prompt; read x <&1; read y; echo got $x and $y");
    wait_for_text(&mut host, &exec, "prompt");
    assert!(host.mux.room(exec.keys) > 0);
    host.feed(exec.keys, b"word\r", false);
    host.feed(exec.stdin, b"line\n", false);
    let (end, out, _) = host.finish(&exec);
    assert_eq!(end, (0, 0));
    assert_eq!(
        String::from_utf8_lossy(&out),
        "prompt\r\ngot word and line\r\n"
    );
    host.wait_for(|host| !host.mux.knows(exec.stdin) && !host.mux.knows(exec.keys));
}

/// Without a standard input the program has /dev/null, and one that is not started leaves nothing.
#[test]
fn a_terminal_beside_nothing() {
    let mut host = Host::start();
    let mut exec = Host::on_terminal(host.shell("wc -c; exit 3"));
    (exec.stdin, exec.keys) = (0, exec.stdin);
    let (end, out, _) = host.run(&exec);
    assert_eq!((end, &out[..]), ((0, 3), &b"0\r\n"[..]));
    let mut missing = Host::on_terminal(host.request(&["no-such-program-here"]));
    (missing.stdin, missing.keys) = (0, missing.stdin);
    assert_eq!(host.failure(&missing).0, 2);
}

/// What goes to a standard error of its own arrives while the program runs, however much it is, and its end is no end of
/// the terminal.
#[test]
fn a_standard_error_of_its_own() {
    let mut host = Host::start();
    let mut exec = Host::on_terminal(
        host.shell("head -c 300000 /dev/zero >&2; exec 2>&-; echo here; read x; stty size; exit 6"),
    );
    exec.stderr = exec.stdout + 2;
    host.exec_started(&exec);
    wait_for_text(&mut host, &exec, "here");
    host.wait_for(|host| {
        host.output[&exec.stderr].len() == 300_000 && !host.mux.knows(exec.stderr)
    });
    host.feed(exec.stdin, b"\r", false);
    let (end, out, error) = host.finish(&exec);
    assert_eq!((end, error.len()), ((0, 6), 300_000));
    assert!(String::from_utf8_lossy(&out).ends_with("24 80\r\n"));
}
