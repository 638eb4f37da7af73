"""Attacks from inside a jail.

Those that a single part of the jail stops also run without that part, and succeed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host.warden import WARDEN_ID, Exited, Failed, Spawned, Warden
from cloche.model.jail import AS_IS, Bind, BindFlag, Dir, File, Jail, JailFlag, Namespace, Proc, Symlink
from support.wardens import (
    ALONE,
    READ_ONLY,
    ROLES,
    Role,
    domain,
    make_role,
    next_events,
    outcome,
    output,
    programs,
    shell,
    small_jail,
)

if TYPE_CHECKING:
    from support.users import OrdinaryUser

#: Writable, and with what is mounted below (which an ordinary user's namespace insists on).
WRITABLE = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE

CLONE_NEWNS, CLONE_NEWUSER, MS_BIND, PR_SET_DUMPABLE = 0x0002_0000, 0x1000_0000, 4096, 4


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def test_a_read_only_bind_refuses_writes(role: Role) -> None:
    """Through a read-only bind the owner of a file cannot change or remove it; through a writable one he can."""

    @role.run
    def _() -> None:
        with role.directory() as directory, domain(role.warden) as warden:
            file = directory / "file"
            script = """
                echo changed >/share/file; chmod 777 /share/file; touch /share/new; rm -f /share/file
                mv /share/file /share/moved; ln -s x /share/link; mount -o remount,rw /share; test -e /share/file"""
            for flags, survives in ((READ_ONLY, True), (WRITABLE, False)):
                file.write_text("original")
                written = output(warden, script, small_jail(Bind(os.fsencode(directory), b"/share", flags)))
                assert (file.exists() and file.read_text() == "original") == survives
                assert written.count("Read-only file system") == (6 if survives else 0), written
                assert written.endswith(f"status: {0 if survives else 1}")
                for left in directory.iterdir():
                    left.unlink()


def test_a_read_only_bind_covers_what_is_mounted_below(role: Role) -> None:
    """A recursive read-only bind of the whole host leaves no mount of it writable."""

    @role.run
    def _() -> None:
        name = f"/dev/shm/cloche-test-{os.getpid()}"
        with domain(role.warden) as warden:
            for flags, status in ((READ_ONLY, 1), (WRITABLE, 0)):
                jail = small_jail(Bind(b"/", b"/host", flags))
                written = output(warden, f"echo x >/host{name} || exit 1", jail)
                assert written.endswith(f"status: {status}"), written
                assert os.path.exists(name) == (status == 0)
        os.unlink(name)


def test_nothing_is_visible_that_was_not_bound(role: Role) -> None:
    """The root holds what was put there and nothing else; no way up leads out of it."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            root = (*programs(), Dir(b"/etc"), File(b"/etc/own", 0o644, b""))
            script = """
                for place in / /.. /../../..; do ls -A $place; done
                ls -A /etc
                cat /proc/mounts /etc/passwd"""
            expected = sorted({op.path.decode()[1:] for op in root} - {"etc/own"})
            *names, first, second, status = output(
                warden, script, Jail(namespaces=ALONE, root=root)
            ).splitlines()
            assert names == [*(expected * 3), "own"]
            assert first == "cat: /proc/mounts: No such file or directory"
            assert second == "cat: /etc/passwd: No such file or directory"
            assert status == "status: 1"
            proc = Jail(namespaces=ALONE, root=(*root, Proc(b"/proc")))
            mounts = output(warden, "cut -d' ' -f2 /proc/self/mounts", proc).split()
            assert set(mounts) - {"status:", "0"} <= {"/", "/proc", *(op.path.decode() for op in programs())}


def test_the_root_and_devices_are_read_only(role: Role) -> None:
    """Nothing can be made in the root, in /dev or in a directory made there, unless a writable root was asked for."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            script = (
                "(touch /x /made/x /dev/x; ls /x /made/x /dev/x) 2>/dev/null; mknod /tmp/null c 1 3; exit 0"
            )
            jail = small_jail(Dir(b"/made"))
            assert output(warden, script, jail) == "mknod: /tmp/null: Read-only file system\nstatus: 0"
            written = output(warden, script, jail._replace(flags=JailFlag.ROOT_WRITABLE))
            assert written == "/made/x\n/x\nmknod: /tmp/null: Operation not permitted\nstatus: 0"


def test_symbolic_links_lead_no_operation_out_of_the_root(role: Role) -> None:
    """Links to absolute paths and to .. are followed inside the new root only; the host stays as it was."""

    @role.run
    def _() -> None:
        with role.directory() as directory, domain(role.warden) as warden:
            outside, share = directory / "outside", directory / "share"
            outside.mkdir()
            share.mkdir()
            (share / "absolute").symlink_to(outside)
            (share / "upwards").symlink_to("../../../../../../../.." + str(outside))
            (share / "magic").symlink_to("/proc/self/root" + str(outside))
            (outside / "secret").write_text("secret")
            bind = Bind(os.fsencode(share), b"/share", WRITABLE)
            inside = os.fsencode(outside)
            for link in (b"absolute", b"upwards"):
                path = b"/share/" + link + b"/planted"
                # The directory the link means inside must exist there: then the file is made there.
                jail = small_jail(Dir(inside), bind, File(path, 0o644, b"planted"))
                written = output(warden, f"cat {outside}/planted; ls {outside}", jail)
                assert written == "plantedplanted\nstatus: 0"
                assert os.listdir(outside) == ["secret"]
                # Without it, nothing is made at all: not the directory either.
                ended = outcome(warden, shell("", small_jail(bind, File(path, 0o644, b"planted"))))
                assert isinstance(ended, Failed)
                ended = outcome(warden, shell("", small_jail(bind, Bind(b"/etc", path, READ_ONLY))))
                assert isinstance(ended, Failed)
            magic = small_jail(bind, File(b"/share/magic/planted", 0o644, b"planted"))
            assert isinstance(outcome(warden, shell("", magic)), Failed)
            assert sorted(os.listdir(share)) == ["absolute", "magic", "upwards"]
            assert os.listdir(outside) == ["secret"]


def test_a_link_in_the_tree_does_not_redirect_a_bind(role: Role) -> None:
    """A bind below a link of the tree lands where the link leads inside, and the host's directory stays as it was."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            ops = (
                Symlink(b"/../../etc", b"/alias"),
                Dir(b"/etc"),
                Bind(b"/usr/share", b"/alias/target", READ_ONLY),
            )
            written = output(warden, "ls / | grep -c alias; test -d /etc/target/doc", small_jail(*ops))
            assert written == "1\nstatus: 0"
        assert not os.path.exists("/etc/target")


def test_a_source_that_is_a_link_is_refused_on_request(role: Role) -> None:
    """With NOFOLLOW a source that has become a link is not bound; without it the link is followed."""

    @role.run
    def _() -> None:
        with role.directory() as directory, domain(role.warden) as warden:
            link = directory / "link"
            link.symlink_to("/etc")
            bind = Bind(os.fsencode(link), b"/bound", READ_ONLY)
            assert output(warden, "test -e /bound/passwd", small_jail(bind)).endswith("status: 0")
            ended = outcome(warden, shell("", small_jail(bind._replace(flags=READ_ONLY | BindFlag.NOFOLLOW))))
            assert isinstance(ended, Failed)
            assert ended.reason().endswith("Too many levels of symbolic links")


def test_the_network_namespace_is_empty(role: Role) -> None:
    """Neither host listeners nor abstract sockets are reached from it; without the namespace both are."""

    @role.run
    def _() -> None:
        abstract = f"cloche-test-{os.getpid()}"
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix, domain(role.warden) as warden:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            unix.bind("\0" + abstract)
            unix.listen()
            script = f"""
                cut -d: -f1 /proc/self/net/dev | tail -n +3 | grep -v '^ *lo$' | wc -l
                exec /usr/bin/perl -MSocket -e '
                    socket(S, AF_INET, SOCK_STREAM, 0);
                    print connect(S, sockaddr_in({tcp.getsockname()[1]}, inet_aton("127.0.0.1"))) ? "tcp\n" : "";
                    socket(U, AF_UNIX, SOCK_STREAM, 0);
                    print connect(U, sockaddr_un("\\0{abstract}")) ? "unix\n" : "";'"""
            assert output(warden, script).split() == ["0", "status:", "0"]
            shared = output(warden, script, small_jail(namespaces=ALONE & ~Namespace.NET)).split()
            assert shared[1:] == ["tcp", "unix", "status:", "0"]


def test_no_capability_is_left(role: Role) -> None:
    """All five sets are empty, or hold exactly what was kept; nothing in a user namespace of its own either."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            script = "grep ^Cap /proc/self/status | cut -f2 | sort -u"
            assert output(warden, script) == f"{0:016x}\nstatus: 0"
            kept = 1 << 0 | 1 << 7 | 1 << 33
            assert output(warden, script, small_jail()._replace(keep_caps=kept)) == f"{kept:016x}\nstatus: 0"
            nested = small_jail(namespaces=ALONE | Namespace.USER)
            assert output(warden, script, nested) == f"{0:016x}\nstatus: 0"
            escape = "mount -t tmpfs x /tmp 2>/dev/null || unshare -Ur mount -t tmpfs x /usr 2>/dev/null || echo denied"
            host = output(warden, "mount --bind /tmp /usr 2>/dev/null || echo denied")
            assert host == "denied\nstatus: 0"
            assert output(warden, escape, nested._replace(rlimits=())) in ("denied\nstatus: 0", "status: 0")


def test_no_new_privileges(role: Role) -> None:
    """A setuid program gives a process of the jail no other id."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            script = "grep -E '^(NoNewPrivs|Uid)' /proc/self/status | tr '\\t' ' '"
            uid = os.getuid()
            assert output(warden, script) == f"Uid: {uid} {uid} {uid} {uid}\nNoNewPrivs: 1\nstatus: 0"


def test_ids_are_taken_on_as_root(ordinary: OrdinaryUser) -> None:
    """As root a process gets the ids asked for and no group; as an ordinary user other ids are refused."""
    for name in ROLES:
        role = make_role(name, ordinary)

        def body(role: Role = role) -> None:
            with domain(role.warden) as warden:
                jail = small_jail()._replace(uid=1234, gid=5678)
                written = output(warden, "id -u; id -g; id -G; grep ^CapEff /proc/self/status", jail)
                if role.name == "root":
                    assert written.split() == ["1234", "5678", "5678", "CapEff:", f"{0:016x}", "status:", "0"]
                else:
                    assert written == "failed: gid 5678: Invalid argument"
                    same = jail._replace(uid=os.getuid(), gid=AS_IS)
                    assert output(warden, "id -u", same) == f"{os.getuid()}\nstatus: 0"

        role.run(body)


def test_the_filter_is_applied(role: Role) -> None:
    """A system call the filter forbids fails in the program; without the filter it works."""

    @role.run
    def _() -> None:
        uname, errno_eperm, allow = 63, 0x0005_0001, 0x7FFF_0000
        # Load the number; if it is uname's, fail with EPERM, else allow.
        instructions = ((0x20, 0, 0, 0), (0x15, 0, 1, uname), (0x06, 0, 0, errno_eperm), (0x06, 0, 0, allow))
        program = b"".join(struct.pack("=HBBI", *one) for one in instructions)
        with domain(role.warden) as warden:
            script = "uname >/dev/null 2>&1 && echo works; grep ^Seccomp_filters /proc/self/status | cut -f2"
            # The first filter is the warden's own.
            assert output(warden, script) == "works\n1\nstatus: 0"
            assert output(warden, script, small_jail()._replace(seccomp=program)) == "2\nstatus: 0"


def test_a_filter_that_forbids_the_exec_is_seen(role: Role) -> None:
    """A filter that kills at execve is reported as death by SIGSYS, and never as a program that runs on."""

    @role.run
    def _() -> None:
        kill_process = struct.pack("=HBBI", 0x06, 0, 0, 0x8000_0000)
        with domain(role.warden) as warden:
            ended = outcome(warden, shell("exit 0", small_jail()._replace(seccomp=kill_process)))
            assert not isinstance(ended, Failed)
            assert (ended.status, ended.signal) == (-1, 31)


def test_keyrings_of_the_host_are_out_of_reach(role: Role) -> None:
    """The caller's session keyring cannot be found, listed or added to, by native or by 32-bit system calls."""

    @role.run
    def _() -> None:
        # keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1); also with the number x32 has for it.
        calls = "250, 0x400000fa"
        script = f"print syscall($_, 0, -3, 1) > 0 ? qq(found\\n) : $!{{ENOSYS}} ? qq(none\\n) : qq($!\\n) for {calls}"
        outside = subprocess.run(["/usr/bin/perl", "-e", script], capture_output=True, check=True, text=True)
        assert outside.stdout.startswith("found\n")
        with domain(role.warden) as warden:
            assert output(warden, f"exec perl -e '{script}'") == "none\nnone\nstatus: 0"


def test_processes_with_namespaces_of_their_own_do_not_reach_each_other(role: Role) -> None:
    """One process of a domain cannot signal another one unless both are in the domain's own pid namespace."""

    @role.run
    def _() -> None:
        for namespaces, ends in ((ALONE, True), (ALONE | Namespace.PID, False)):
            with domain(role.warden) as warden:
                gate, opener = os.pipe()
                warden.send_spawn(
                    shell("read x; exit 3", small_jail(namespaces=namespaces), ident=7, fds=(0,)), [gate]
                )
                (spawned,) = next_events(warden)
                assert isinstance(spawned, Spawned)
                warden.send_spawn(
                    shell(f"kill -KILL {spawned.pid} -1", small_jail(namespaces=namespaces)), []
                )
                events: list[object] = []
                while not any(isinstance(event, Exited) and event.id == 1 for event in events):
                    events += next_events(warden)
                os.write(opener, b"\n")
                while not any(isinstance(event, Exited) and event.id == 7 for event in events):
                    events += next_events(warden)
                assert (Exited(7, -1, 9) if ends else Exited(7, 3)) in events


def test_processes_of_the_host_are_not_there(role: Role) -> None:
    """Only the domain's processes exist: PID 1 is the warden, and no id of the host's can be signalled."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            script = f"""
                cat /proc/1/comm
                ls -d /proc/[0-9]* | wc -l
                kill -0 {os.getpid()} 2>/dev/null || echo unreachable"""
            comm, count, last, *_ = output(warden, script).split("\n")
            assert (comm, last) == ("cloche-warden/1", "unreachable")
            assert int(count) <= 4
            own = output(warden, "echo $$; cat /proc/1/comm", small_jail(namespaces=ALONE | Namespace.PID))
            assert own in {"1\nsh\nstatus: 0", "1\ncat\nstatus: 0"}


def test_root_without_capabilities_cannot_set_the_host_s_kernel_up(role: Role) -> None:
    """What /proc/sys lets user id 0 write without any capability is not there or not writable in a jail."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden:
            names = (
                "sys/kernel/core_pattern",
                "sys/kernel/hostname",
                "sys/vm/drop_caches",
                "sysrq-trigger",
                "irq",
                "bus",
            )
            script = f"cd /proc; for name in {' '.join(names)}; do test -w $name && echo $name; done; exit 0"
            assert output(warden, script) == "status: 0"
            if role.name == "root":
                # The reason: a whole /proc, as a process gets it that is to make user namespaces, would be writable.
                whole = small_jail()._replace(keep_caps=1 << 31)
                assert "sys/kernel/core_pattern" in output(warden, script, whole)


def test_the_host_s_mounts_stay_as_they_were(role: Role) -> None:
    """Building jails changes no mount of the host."""

    @role.run
    def _() -> None:
        before = Path("/proc/self/mountinfo").read_text()
        with domain(role.warden) as warden:
            assert output(warden, "exit 0", small_jail(Bind(b"/", b"/host", READ_ONLY))).endswith("status: 0")
            assert Path("/proc/self/mountinfo").read_text() == before
        assert Path("/proc/self/mountinfo").read_text() == before


def enter_user_namespace() -> ctypes.CDLL:
    """Move this process into a user and mount namespace of its own, ids as they are; return the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    # A process that has changed its ids does not own its files in /proc until it is dumpable again.
    assert libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return libc


def test_a_covered_proc_of_the_host_is_reported(role: Role) -> None:
    """Where parts of /proc are covered (containers), the kernel refuses a new one, and the message says why."""

    @role.run
    def _() -> None:
        libc = enter_user_namespace()
        assert libc.mount(b"/dev/null", b"/proc/cmdline", None, MS_BIND, None) == 0
        with domain(role.warden) as warden:
            ended = outcome(
                warden, shell("exit 0", Jail(namespaces=ALONE, root=(*programs(), Proc(b"/proc"))))
            )
        assert isinstance(ended, Failed)
        assert ended.reason() == (
            "mount proc /proc (parts of the host's /proc are covered by other mounts): Operation not permitted"
        )


def test_a_failed_start_of_the_warden_is_reported(role: Role) -> None:
    """Where user namespaces cannot be made, a Failed about the warden itself names the step."""

    @role.run
    def _() -> None:
        enter_user_namespace()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        with Warden.start(role.warden) as warden:
            (event,) = next_events(warden)
            assert isinstance(event, Failed)
            assert (event.id, event.reason()) == (
                WARDEN_ID,
                "make a user, pid and mount namespace: this host allows no more of them",
            )
            assert warden.wait() == 125
