"""Bad input: one clear sentence, a hint, a status of cloche's own, never a traceback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.errors import check_error
from support.hosts import bind, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.hosts import ChangedHost
    from support.runs import Runner


def test_unknown_program(cloche: Runner) -> None:
    """A name nobody knows is status 127, before any machine starts."""
    check_error(cloche("no-such-program"), 127, "no-such-program was not found", "hint:")


def test_program_outside_the_shares(cloche: Runner, folder: Path) -> None:
    """A program of a directory that is not shared is status 127 and the hint names the remedy."""
    script = folder / "script"
    script.write_text("#!/bin/sh\necho hi\n")
    script.chmod(0o755)
    check_error(cloche("./script", cwd=folder), 127, "--here")
    check_error(cloche(str(script)), 127, "--share")
    assert cloche("--here", "./script", cwd=folder).stdout == b"hi\n"


def test_not_executable(cloche: Runner, folder: Path) -> None:
    """A file without execute permission, a directory and a foreign binary are status 126."""
    (folder / "plain").write_text("text\n")
    foreign = folder / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44))
    foreign.chmod(0o755)
    for path in (folder / "plain", foreign):
        if os.geteuid() == 0:
            os.chown(path, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    check_error(cloche("--here", "./plain", cwd=folder), 126, "cannot be executed")
    check_error(cloche("/usr"), 126, "is a directory")
    check_error(cloche("--here", "./foreign", cwd=folder), 126, "wrong architecture")


@pytest.mark.parametrize(
    "words, status, said",
    [
        ([""], 127, "name is empty"),
        (["/usr/bin/true/x"], 127, "not found"),
        (["--share", "/", "true"], 125, "whole root"),
        (["--share", "//..", "true"], 125, "whole root"),
        (["--share", "/proc", "true"], 125, "the host's kernel"),
        (["--share", "/srv:at=/", "true"], 125, "/"),
        (["--include", "/etc/x=/no/such", "true"], 125, "No such file"),
        (["--include", "/etc/x=/etc/shadow", "true"], 125, "may not read"),
        (["--include", "/etc/x=/", "true"], 125, "whole root"),
        (["--share", "/no/such/place", "true"], 125, "No such file"),
        (["--share", "/etc/passwd", "true"], 125, "--include"),
        (["--share", "/srv:at=/usr", "true"], 125, "/usr"),
        (["-m", "8M", "true"], 125, "too little"),
        (["-m", "63M", "true"], 125, "too little"),
        (["-m", "0", "true"], 125, "is not a size"),
        (["-m", "-5M", "true"], 125, "is not a size"),
        (["-m", "900G", "true"], 125, "more than this host has"),
        (["-m", "much", "true"], 125, "is not a size"),
        (["-c", "0", "true"], 125, "whole number"),
        (["-c", "1000", "true"], 125, "1000 CPUs"),
        (["--pids", "0", "true"], 125, "whole number"),
        (["--timeout", "0.2s", "sleep", "9"], 124, "time limit"),
        (["--accel", "xen", "true"], 125, "xen"),
        (["--kernel", "/no/such", "true"], 125, "there is no kernel"),
        (["--memory"], 125, "needs a value"),
        (["--tty=yes", "true"], 125, "takes no value"),
        (["kernel", "list", "x"], 125, "takes no argument"),
        (["--kernel", "none-such", "true"], 125, "none-such"),
        (["--driver", "vmware", "true"], 125, "vmware"),
        (["--no-such-option", "true"], 125, "unknown option"),
        (["-u", "somebody", "true"], 125, "somebody"),
        (["-w", "/no/where", "true"], 127, "has no directory /no/where"),
        (["-w", "/etc/passwd", "true"], 126, "cannot start in /etc/passwd: Not a directory"),
        (["-w", "/root", "true"], 126, "cannot start in /root: Permission denied"),
        (["-w", "/" + "x" * 300, "true"], 126, "File name too long"),
        (["run"], 125, "no program"),
    ],
)
def test_words_that_make_no_sense(cloche: Runner, words: list[str], status: int, said: str) -> None:
    """Each wrong word is named."""
    check_error(cloche(*words), status, said)


def test_unreadable_share(cloche: Runner, folder: Path) -> None:
    """A directory the caller may not read is refused before anything starts."""
    closed = folder / "closed"
    closed.mkdir(mode=0o000)
    check_error(cloche("--share", str(closed), "true"), 125, "cannot share")


def test_unwritable_cache(cloche: Runner, folder: Path) -> None:
    """A cache directory that cannot be made is named."""
    blocked = folder / "file"
    blocked.write_text("")
    check_error(cloche("true", env={"XDG_CACHE_HOME": str(blocked)}), 125, "hint:")


def test_deadline_of_the_start(cloche: Runner) -> None:
    """A machine that takes longer than it was given ends, and the options that help are named."""
    check_error(cloche("--boot-timeout", "0.05s", "true"), 125, "did not answer within", "--boot-log")


def test_smallest_machine(cloche: Runner) -> None:
    """The least memory that is not refused is enough to boot."""
    assert cloche("-m", "64M", "true").returncode == 0


# Programs that are there and do not run


@pytest.fixture
def script(folder: Path, cloche: Runner) -> Callable[[bytes], Path]:
    """Return a function that makes an executable ``script`` of these bytes and returns its directory."""

    def make(content: bytes) -> Path:
        path = folder / "script"
        path.write_bytes(content)
        path.chmod(0o755)
        os.chown(path, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
        return folder

    return make


@pytest.mark.parametrize(
    "content, status, said",
    [
        (b"#!/no/such/interpreter -x\n", 127, "what interprets it does not exist"),
        (b"#!/etc/passwd\n", 126, "cannot be executed: Permission denied"),
        (b"#!\n", 126, "without #!"),
        (b"echo hello\n", 126, "without #!"),
        (b"", 126, "without #!"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44), 126, "wrong architecture"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\x00\x28\x00" + bytes(44), 126, "wrong architecture"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(44), 126, "not a program"),
    ],
    ids=["interpreter", "text as interpreter", "only #!", "no #!", "empty", "arm64", "arm", "damaged"],
)
def test_file_that_is_no_program(
    cloche: Runner, script: Callable[[bytes], Path], content: bytes, status: int, said: str
) -> None:
    """Each way in which an executable file is none says its own words."""
    check_error(cloche("--here", "./script", cwd=script(content)), status, "./script", said)


def test_binary_without_its_loader(cloche: Runner, script: Callable[[bytes], Path]) -> None:
    """A binary whose loader does not exist was found all the same."""
    with open("/usr/bin/true", "rb") as file:
        here = script(file.read().replace(b"/ld-linux-x86-64.so.2\0", b"/ld-linux-x86-64.so.9\0"))
    check_error(cloche("--here", "./script", cwd=here), 127, "what interprets it does not exist")


def test_links_that_lead_nowhere(cloche: Runner, folder: Path) -> None:
    """A link to itself is not executable, one to nothing is not found."""
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").symlink_to("/no/where")
    check_error(cloche("--here", "./loop", cwd=folder), 126, "./loop", "symbolic links")
    check_error(cloche("--here", "./nothing", cwd=folder), 127, "./nothing was not found")


def test_working_directory_that_is_closed(cloche: Runner, folder: Path) -> None:
    """A directory that is there and may not be entered is not called missing."""
    (folder / "closed").mkdir(mode=0o000)
    done = cloche("--share", str(folder), "-w", str(folder / "closed"), "true")
    check_error(done, 126, "cannot start in", "Permission denied")


# Shares that vanish

#: Runs cloche, and moves a directory away between the plan and the start.
_VANISH = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cloche.cli.main import main
from cloche.domain.launcher import Launcher
start = Launcher.start
def vanish(launcher):
    os.rename(sys.argv[2], sys.argv[2] + ".gone")
    start(launcher)
Launcher.start = vanish
sys.exit(main(sys.argv[3:]))
"""


#: Enters a process's user and mount namespace and unmounts there; a program of its own would have no rights.
_UNMOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
spaces = [os.open(f"/proc/{sys.argv[1]}/ns/{name}", os.O_RDONLY) for name in ("user", "mnt")]
for space in spaces:
    if libc.setns(space, 0):
        sys.exit(os.strerror(ctypes.get_errno()))
MNT_DETACH = 2
if libc.umount2(os.fsencode(sys.argv[2]), MNT_DETACH):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


@pytest.fixture
def shared(folder: Path, cloche: Runner) -> Path:
    """Provide a directory of the user's with a file in it."""
    path = folder / "shared"
    path.mkdir(mode=0o755)
    (path / "file").write_text("old\n")
    for made in (path, path / "file"):
        os.chown(made, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    return path


def test_share_that_vanishes_before_the_start(host: ChangedHost, shared: Path) -> None:
    """A directory that goes between the look at it and the start is named."""
    program = ("/usr/bin/python3", "-I", "-S", "-c", _VANISH, str(host.user.project / "src"))
    done = host.run_on_host(*program, str(shared), "--share", str(shared), "true")
    check_error(done, 125, f"bind {shared}", "No such file or directory", "share a directory that stays")


@pytest.mark.parametrize("way", ["moved", "removed", "replaced"])
def test_share_that_vanishes_while_it_is_used(cloche: Runner, shared: Path, way: str) -> None:
    """The program keeps the directory it was given, whatever stands at its path now; the run ends as it would."""
    words = ("--share", f"{shared}:rw", "-w", str(shared), "sh", "-c")
    waiting = (
        'echo ready; read line; [ "$line" != removed ] || while [ -e file ]; do :; done; ls; echo new > made'
    )
    with cloche.popen(*words, waiting, stdin=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if way == "removed":
            (shared / "file").unlink()
            shared.rmdir()
        else:
            shared.rename(f"{shared}.gone")
        if way == "replaced":
            shared.mkdir()
            (shared / "secret").write_text("not shared\n")
        output, errors = process.communicate(way.encode() + b"\n", timeout=60)
    if way == "removed":
        assert (process.returncode, output) == (2, b""), errors
        assert b"cannot create made" in errors
    else:
        assert (process.returncode, output, errors) == (0, b"file\n", b"")
        assert shared.with_name("shared.gone").joinpath("made").read_text() == "new\n"
    if way == "replaced":
        assert os.listdir(shared) == ["secret"]
    assert b"cloche:" not in errors


def test_share_that_is_unmounted_while_it_is_used(host: ChangedHost, shared: Path) -> None:
    """A share is a mount of its own: the program keeps it when the host's is gone."""
    changed = host.on(*small_disk(shared, 1 << 20, filled=False))
    run = 'echo old > "$1/file"; exec "$0" --share "$1" sh -c \'echo ready; read line; cat "$0/file"\' "$1"'
    words = changed.wrap("/bin/sh", "-c", run, changed.program, str(shared))
    with host.user.popen(words, stdin=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        python = ["/usr/bin/python3", "-I", "-S", "-c", _UNMOUNT]
        host.user.run([*python, str(process.pid), str(shared)], check=True)
        output, errors = process.communicate(b"go\n", timeout=60)
    assert (process.returncode, output, errors) == (0, b"old\n", b"")


# Homes and plans


def test_closed_file_in_the_skeleton_of_homes(host: ChangedHost, folder: Path) -> None:
    """A file of /etc/skel that the caller may not read is left out of the home; the others are there."""
    skeleton = folder / "skeleton"
    skeleton.mkdir(mode=0o755)
    (skeleton / "open").write_text("text\n")
    (skeleton / "closed").write_text("secret\n")
    (skeleton / "closed").chmod(0o000)
    (skeleton / "closed directory").mkdir(mode=0o000)
    done = host.on(bind(skeleton, "/etc/skel"))("sh", "-c", "cd; cat open; ls")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"text\nclosed directory\nopen\n"


def test_dry_run_changes_nothing(host: ChangedHost, folder: Path, cloche: Runner) -> None:
    """--dry-run makes no file: no initramfs, no remembered facts, no run directory."""
    cache = folder / "cache"
    cache.mkdir(mode=0o700)
    os.chown(cache, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    kernels = cloche.user.home / ".cache" / "cloche" / "kernels"
    kernel = next(path for path in sorted(kernels.iterdir()) if (path / "vmlinux").exists())
    done = host("--dry-run", "--kernel", str(kernel), "true", env={"XDG_CACHE_HOME": str(cache)})
    assert done.returncode == 0, done.stderr
    assert b"initramfs" in done.stdout
    assert not os.listdir(cache)
    assert not os.listdir(host.runtime)
