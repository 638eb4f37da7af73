"""The warden and its Python side: starting processes, their descriptors, how they end, what is reported."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from cloche.errors import LaunchError
from cloche.host.codec import Writer
from cloche.host.warden import WARDEN_ID, Exited, Failed, Ready, Spawned, Warden, encode_spawn
from cloche.model.jail import Bind, BindFd, Dir, File, Jail, JailFlag, Namespace, SpawnSpec, Symlink, Tmpfs
from support.wardens import (
    ALONE,
    PATIENCE_S,
    READ_ONLY,
    ROLES,
    Role,
    descendants,
    domain,
    make_role,
    next_events,
    outcome,
    output,
    read_line,
    shell,
    small_jail,
    wait_dead,
)

if TYPE_CHECKING:
    from cloche.host.warden import Event
    from support.users import OrdinaryUser


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def test_statuses_and_signals_are_reported(role: Role) -> None:
    """A process's exit status, or the signal that killed it, arrives as it was."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            assert outcome(warden, shell("exit 0")) == Exited(1, 0)
            assert outcome(warden, shell("exit 255")) == Exited(1, 255)
            assert outcome(warden, shell("kill -KILL $$")) == Exited(1, -1, signal.SIGKILL)


def test_descriptors_arrive_at_their_numbers(role: Role) -> None:
    """Each descriptor has its number, even when numbers overlap with those used before; no other is open."""

    @role.run
    def _() -> None:
        pipes = [os.pipe() for _ in range(3)]
        for number, (_, writer) in enumerate(pipes):
            os.write(writer, b"%d\n" % number)
            os.close(writer)
        with domain(role.warden) as warden:
            numbers = {5: pipes[0][0], 3: pipes[1][0], 200: pipes[2][0]}
            script = "read a <&5; read b <&3; read c </proc/self/fd/200; echo $a $b $c; ls /proc/self/fd"
            written = output(warden, script, fds=numbers).split()
        # `ls` has the directory itself open, at the lowest number that is free.
        assert written == ["0", "1", "2", "0", "1", "2", "200", "3", "4", "5", "status:", "0"]


def test_standard_streams_are_null_unless_named(role: Role) -> None:
    """A process without descriptors has /dev/null for stdin, stdout and stderr, and nothing else."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            reader, writer = os.pipe()
            script = "for n in 0 1 2; do readlink /proc/self/fd/$n >&9; done"
            ended = outcome(warden, shell(script, fds=(9,)), [writer])
            os.close(writer)
            # `readlink` itself has its stdout redirected to the pipe.
            lines = os.read(reader, 1000).split()
        assert ended == Exited(1, 0)
        assert lines[0] == lines[2] == b"/dev/null"
        assert lines[1].startswith(b"pipe:")


def test_environment_and_directory_are_as_given(role: Role) -> None:
    """The environment is exactly what was given, bytes and all, and the working directory is inside the jail."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            reader, writer = os.pipe()
            spec = shell("", small_jail(Dir(b"/a b/\xff"))._replace(cwd=b"/a b/\xff"), fds=(1,))
            spec = spec._replace(argv=(b"/usr/bin/env", b"-0"), env=(b"A=\xff\n", b"B="))
            assert outcome(warden, spec, [writer]) == Exited(1, 0)
            spec = spec._replace(argv=(b"/bin/pwd",))
            assert outcome(warden, spec, [writer]) == Exited(1, 0)
            os.close(writer)
            assert os.read(reader, 1000) == b"A=\xff\n\0B=\0/a b/\xff\n"


def test_program_by_descriptor_needs_no_file(role: Role) -> None:
    """A static program given as a descriptor runs in a jail whose root is empty."""

    @role.run
    def _() -> None:
        program = os.open(role.warden, os.O_PATH)
        reader, writer = os.pipe()
        with domain(role.warden) as warden:
            jail = Jail(namespaces=ALONE)
            spec = SpawnSpec(1, b"self", (b"anything",), (), jail, fds=(2,), exe_fd=True)
            assert outcome(warden, spec, [writer, program]) == Exited(1, 125)
        os.close(writer)
        assert b"descriptor 3 must be" in os.read(reader, 1000)


def test_failures_name_their_step(role: Role) -> None:
    """What cannot be built or executed is reported with its step, its paths and the kernel's reason."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:

            def failure(jail: Jail) -> tuple[str, int]:
                ended = outcome(warden, shell("exit 0", jail))
                assert isinstance(ended, Failed)
                return ended.what, ended.errno

            missing = Bind(b"/no/such", b"/x", READ_ONLY)
            assert failure(small_jail(missing)) == ("bind /no/such to /x", errno.ENOENT)
            optional = missing._replace(flags=READ_ONLY | 32)
            assert outcome(warden, shell("exit 0", small_jail(optional))) == Exited(1, 0)
            assert failure(small_jail(Dir(b"relative"))) == ("path relative", errno.EINVAL)
            assert failure(small_jail(File(b"/usr/x", 0o644, b""))) == (
                "make /usr/x in what was bound",
                errno.EROFS,
            )
            assert failure(small_jail()._replace(cwd=b"/no")) == ("cwd /no", errno.ENOENT)
            assert failure(Jail(namespaces=ALONE)) == ("exec /bin/sh", errno.ENOENT)
            assert failure(small_jail(namespaces=Namespace.NET))[1] == errno.EINVAL
            assert failure(small_jail()._replace(seccomp=b"\xff" * 8)) == ("seccomp", errno.EINVAL)
            assert failure(small_jail()._replace(keep_caps=1 << 63)) == ("capabilities", errno.EINVAL)
            assert failure(small_jail()._replace(hostname=b"h" * 65))[0] == "hostname"
            # And nothing of all that has harmed the warden.
            assert outcome(warden, shell("exit 3")) == Exited(1, 3)


def test_root_operations_make_what_they_say(role: Role) -> None:
    """Directories, files, links, tmpfs and binds of files and of descriptors are there, with their modes."""

    @role.run
    def _() -> None:
        with role.directory() as directory, domain(role.warden) as warden:
            (directory / "file").write_text("from the host\n")
            fd = os.open(directory, os.O_PATH)
            ops = (
                Dir(b"/made/deep", 0o700),
                File(b"/made/file", 0o640, b"content\n"),
                Symlink(b"made/file", b"/link"),
                Tmpfs(b"/small", 1 << 16, 0o1777),
                Bind(os.fsencode(directory / "file"), b"/made/bound", READ_ONLY),
                BindFd(0, b"/made/opened", READ_ONLY),
            )
            script = """
                stat -c '%a %n' /made/deep /made/file /small
                cat /link /made/bound /made/opened/file
                head -c 70000 /dev/zero >/small/x && echo too much
                exit 0"""
            spec = shell(script, small_jail(*ops))._replace(fds=(None, 1))
            reader, writer = os.pipe()
            assert outcome(warden, spec, [fd, writer]) == Exited(1, 0)
            os.close(writer)
            assert os.read(reader, 4096).decode().splitlines() == [
                "700 /made/deep",
                "640 /made/file",
                "1777 /small",
                "content",
                "from the host",
                "from the host",
            ]


def test_a_bound_descriptor_that_was_replaced_is_refused(role: Role) -> None:
    """When another file stands at the path of the descriptor, it is not that one which is bound."""

    @role.run
    def _() -> None:
        with role.directory() as directory, domain(role.warden) as warden:
            share = directory / "share"
            share.mkdir()
            fd = os.open(share, os.O_PATH)
            share.rename(directory / "moved")
            bind = BindFd(0, b"/x", READ_ONLY)
            spec = shell("exit 0", small_jail(bind))._replace(fds=(None,))
            assert outcome(warden, spec, [fd]) == Exited(1, 0)  # moved is no harm: its path is known
            (directory / "moved").rmdir()
            share.mkdir()
            ended = outcome(warden, spec, [fd])
        assert isinstance(ended, Failed)
        assert ended.errno in (errno.ENOENT, errno.ESTALE)


def test_signals_reach_processes(role: Role) -> None:
    """KILL sends the signal to the process with that id; an id that is not known is no error."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            reader, writer = os.pipe()
            script = "trap 'exit 9' USR1; sleep 1000 & echo on; wait"
            warden.send_spawn(shell(script, fds=(1,)), [writer])
            warden.kill(77, signal.SIGTERM)
            spawned = next_events(warden)[0]
            assert isinstance(spawned, Spawned)
            assert read_line(reader) == "on"
            warden.kill(1, signal.SIGUSR1)
            assert wait_dead([spawned.pidfd], PATIENCE_S) == []
            assert next_events(warden) == [Exited(1, 9)]


def test_an_id_in_use_is_refused(role: Role) -> None:
    """A second process with the id of a living one is not started, and the first goes on."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            reader, writer = os.pipe()
            warden.send_spawn(shell("read x; exit 4", fds=(0,)), [reader])
            assert isinstance(next_events(warden)[0], Spawned)
            assert outcome(warden, shell("exit 0")) == Failed(1, errno.EEXIST, "id in use")
            os.write(writer, b"\n")
            assert next_events(warden) == [Exited(1, 4)]


def test_many_at_once_are_reported_in_order(role: Role) -> None:
    """Sixty processes asked for without waiting are all started and ended, each SPAWNED before its EXITED."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            for ident in range(60):
                warden.send_spawn(shell(f"exit {ident}", ident=ident), ())
            seen: dict[int, list[Event]] = {}
            while sum(map(len, seen.values())) < 120:
                for event in next_events(warden):
                    assert isinstance(event, Spawned | Exited)
                    seen.setdefault(event.id, []).append(event)
            for ident, (first, second) in seen.items():
                assert isinstance(first, Spawned)
                os.close(first.pidfd)
                assert second == Exited(ident, ident)


def test_a_supervisor_that_does_not_read_loses_nothing(role: Role) -> None:
    """Six hundred failures nobody reads meanwhile neither stop the warden nor get lost."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            name = b"/" + b"n" * 2000
            spec = shell("exit 0", small_jail(Bind(b"/no/such", name, READ_ONLY)))
            for ident in range(600):
                warden.send_spawn(spec._replace(id=ident), ())
            idents: set[int] = set()
            while len(idents) < 600:
                for event in next_events(warden):
                    assert isinstance(event, Failed)
                    assert event.errno in (errno.ENOENT, errno.ENAMETOOLONG)
                    idents.add(event.id)
            assert idents == set(range(600))


def test_orphans_are_reaped(role: Role) -> None:
    """A process whose parent has ended is PID 1's to reap, and no zombie stays."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            gate, opener = os.pipe()
            reader, writer = os.pipe()
            script = "(read x <&4; exit 0) & echo $! >&3; exit 0"
            assert outcome(warden, shell(script, fds=(3, 4)), [writer, gate]) == Exited(1, 0)
            read_line(reader)
            orphans = [one for one in descendants(warden.pid) if one.name == "sh"]
            pidfds = [os.pidfd_open(one.pid) for one in orphans]
            assert len(pidfds) == 1
            os.write(opener, b"\n")
            assert wait_dead(pidfds, PATIENCE_S) == []
            assert outcome(warden, shell("exit 0")) == Exited(1, 0)
            # It was dead before the last command came, so it was reaped before that was answered.
            assert not os.path.exists(f"/proc/{orphans[0].pid}")


def test_shutdown_ends_everything(role: Role) -> None:
    """SHUTDOWN ends all processes, the supervisor reads end of file, and the outer process exits with 0."""

    @role.run
    def _() -> None:
        warden = Warden.start(role.warden)
        reader, writer = os.pipe()
        warden.send_spawn(shell("read x", fds=(0,)), [reader])
        events: list[Event] = []
        while len(events) < 2:
            events += next_events(warden)
        assert events[0] == Ready()
        assert isinstance(events[1], Spawned)
        warden.shutdown()
        assert wait_dead([events[1].pidfd], PATIENCE_S) == []
        assert warden.wait() == 0
        with pytest.raises(LaunchError, match="the warden is gone"):
            next_events(warden)
        with pytest.raises(LaunchError, match="the warden is gone"):
            warden.kill(1, 9)
        warden.shutdown()
        warden.close()
        os.close(writer)


def test_malformed_messages_are_reported_and_survived(role: Role) -> None:
    """Bytes that are no message start nothing and are answered with FAILED."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            whole = encode_spawn(shell("exit 0"))
            for packet in (b"\x09", b"\x01", whole[:-1], whole + b"\0", b"\x02\x01"):
                warden._send(packet, ())
                (event,) = next_events(warden)
                assert isinstance(event, Failed)
                assert (event.id, event.errno) == (WARDEN_ID, errno.EBADMSG)
            # Named, but not sent along.
            warden._send(encode_spawn(shell("exit 0", fds=(0, 1))), [0])
            assert next_events(warden) == [Failed(1, errno.EMFILE, "descriptors were lost")]
            assert outcome(warden, shell("exit 6")) == Exited(1, 6)


def test_damaged_messages_never_harm_the_warden(role: Role) -> None:
    """A thousand SPAWN messages with random damage are each answered, and the warden still works after them."""

    @role.run
    def _() -> None:
        source = random.Random(7)
        whole = encode_spawn(shell("exit 0", small_jail(File(b"/f", 0o644, b"c"), Tmpfs(b"/t", 1 << 16))))
        with domain(role.warden) as warden:
            for _ in range(1000):
                damaged = bytearray(whole)
                for _ in range(source.randint(1, 4)):
                    damaged[source.randrange(1, len(damaged))] = source.randrange(256)
                warden._send(bytes(damaged), ())
                while True:
                    ended = [event for event in next_events(warden) if not _is_started(event)]
                    if ended:
                        break
            assert outcome(warden, shell("exit 5")) == Exited(1, 5)


def _is_started(event: Event) -> bool:
    if isinstance(event, Spawned):
        os.close(event.pidfd)
        return True
    return False


def test_bad_calls_are_refused_before_anything_is_sent(role: Role) -> None:
    """Descriptors that do not fit the description, and messages that are too long, raise ValueError."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            with pytest.raises(ValueError, match="1 descriptors given, 2 named"):
                warden.send_spawn(shell("", fds=(0, 1)), [0])
            with pytest.raises(ValueError, match="longer than"):
                warden.send_spawn(shell("x" * 200_000), ())
            assert outcome(warden, shell("exit 0")) == Exited(1, 0)


def test_spawn_and_wait_returns_the_end_or_raises(role: Role) -> None:
    """The waiting helper gives the end of the process, and raises with the step when there was no start."""

    @role.run
    def _() -> None:
        with Warden.start(role.warden) as warden:
            assert warden.spawn_and_wait(shell("exit 8")) == Exited(1, 8)
            with pytest.raises(LaunchError, match=r"cannot start script: cwd /no: No such file or directory"):
                warden.spawn_and_wait(shell("", small_jail()._replace(cwd=b"/no")))


def test_descriptors_are_not_leaked(role: Role) -> None:
    """A domain leaves no descriptor open in the supervisor, whether its processes started or not."""

    @role.run
    def _() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with domain(role.warden) as warden:
            assert outcome(warden, shell("exit 0")) == Exited(1, 0)
            assert isinstance(outcome(warden, shell("exit 0", Jail(namespaces=ALONE))), Failed)
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_flags_do_what_they_say(role: Role) -> None:
    """A session of its own, no new privileges, no core file, a writable root: each only when asked for."""

    @role.run
    def _() -> None:
        script = """
            test "$(cut -d' ' -f6 /proc/$$/stat)" = $$ && echo session
            grep -q 'NoNewPrivs:.1' /proc/$$/status && echo nnp
            grep -q 'core file size  *1  *1 ' /proc/$$/limits && echo nocore
            echo x 2>/dev/null >/file && echo writable
            exit 0"""
        names = {"session": JailFlag.SETSID, "nnp": JailFlag.NO_NEW_PRIVS, "writable": JailFlag.ROOT_WRITABLE}
        jail = small_jail()
        core = (4, 1 << 20, 1 << 20)
        with domain(role.warden) as warden:
            for name, flag in names.items():
                written = output(warden, script, jail._replace(flags=flag, rlimits=(core,)))
                assert written.split() == [name, "status:", "0"]
            written = output(warden, script, jail._replace(flags=JailFlag.NOT_DUMPABLE, rlimits=((4, 0, 0),)))
            assert written.split() == ["nocore", "status:", "0"]


def test_limits_host_name_and_pid_namespace(role: Role) -> None:
    """Resource limits, a host name and a pid namespace of its own take effect."""

    @role.run
    def _() -> None:
        jail = small_jail(namespaces=ALONE | Namespace.PID)
        jail = jail._replace(hostname=b"inside", rlimits=((7, 64, 128),))
        with domain(role.warden) as warden:
            written = output(warden, "uname -n; ulimit -Sn; ulimit -Hn; echo $$", jail)
            assert written.split() == ["inside", "64", "128", "1", "status:", "0"]
            too_much = jail._replace(rlimits=((7, 1 << 40, 1 << 40),))
            assert output(warden, "exit 0", too_much) == "failed: rlimit 7: Operation not permitted"


def test_a_reason_is_heard_although_not_all_was_read() -> None:
    """A warden that says why it goes is heard, also when it went without reading what it was asked for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warden = Warden(ours, 0)
    warden.shutdown()  # never read: the kernel reports a reset, and before the packet that is already there
    writer = Writer()
    writer.u8(67)
    writer.u32(WARDEN_ID)
    writer.u32(errno.ENOSPC)
    writer.blob(b"make a user, pid and mount namespace")
    theirs.send(writer.finish())
    theirs.close()
    (event,) = warden.receive()
    assert isinstance(event, Failed)
    assert event.reason() == "make a user, pid and mount namespace: this host allows no more of them"
    with pytest.raises(LaunchError, match="the warden is gone"):
        warden.receive()
    warden.release()
