"""Shares that are added to a running machine and taken away, as an ordinary user and as whoever runs the tests."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes
from support.live import Live, live
from support.pty import TerminalProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@pytest.fixture(scope="module")
def domain(runner: Runner) -> Iterator[Live]:
    """Provide a domain that was started without a share, for all tests that leave it as it was."""
    with live(runner, "--share-later") as domain:
        yield domain
        assert domain.listed() == []
        domain.audit()


@pytest.fixture
def folder(runner: Runner) -> Iterator[Path]:
    """Provide an empty directory of that user's."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(dir=runner.user.home, prefix="live-"))
    os.chown(path, runner.user.entry.pw_uid, runner.user.entry.pw_gid)
    (path / "file").write_text("text\n")
    yield path
    shutil.rmtree(path)


def test_a_running_program_sees_what_is_added_and_not_what_was_removed(domain: Live, folder: Path) -> None:
    """Read-only by default, at the same place; gone afterwards; and the jails hold all the time."""
    assert "No such file" in domain.sees(f"cat {folder}/file")
    assert domain.share("add", str(folder)) == ""
    assert domain.sees(f"cat {folder}/file") == "text\n"
    assert "Read-only file system" in domain.sees(f"echo x >{folder}/new")
    assert domain.listed() == [{"guest": str(folder), "host": str(folder), "writable": False, "added": True}]
    domain.audit()
    assert domain.share("remove", str(folder)) == ""
    assert "No such file" in domain.sees(f"cat {folder}/file")
    assert domain.listed() == []


def test_a_writable_share_at_another_place(domain: Live, folder: Path) -> None:
    """What the guest writes is on the host when it has been taken away, by its place on the host too."""
    assert domain.share("add", f"{folder}:rw:at=/srv/deep/er") == ""
    assert domain.sees("echo written >/srv/deep/er/new; cat /srv/deep/er/file") == "text\n"
    domain.audit()
    assert domain.share("remove", str(folder)) == ""
    assert (folder / "new").read_text() == "written\n"


def test_one_in_use_is_not_taken_away_unless_forced(domain: Live, folder: Path) -> None:
    """The refusal says so and changes nothing; with --force what is open fails, and nothing more is written."""
    domain.share("add", f"{folder}:rw:at=/srv/busy")
    domain.sees("exec 7>>/srv/busy/open; echo one >&7")
    refused = domain.share("remove", "/srv/busy")
    assert "cloche: /srv/busy is in use in the guest" in refused
    assert "hint: --force takes it away" in refused
    assert domain.sees("echo two >&7; cat /srv/busy/open") == "one\ntwo\n"
    assert domain.share("remove", "--force", "/srv/busy") == ""
    assert "rror" in domain.sees("echo three >&7") or "Stale" in domain.sees("echo three >&7")
    domain.sees("exec 7>&-")
    assert (folder / "open").read_text() == "one\ntwo\n"
    assert domain.listed() == []


def test_names_of_any_bytes(domain: Live, folder: Path) -> None:
    """A name with a line end, a colon, an escape sequence or no UTF-8 is shared, listed safely, and removed."""
    for name in (b"line\nend", b"a:rw:b", b"\x1b[31mred", b"\xff\xfe"):
        path = os.fsencode(folder) + b"/" + name
        os.mkdir(path, 0o755)
        os.chown(path, *os.stat(folder)[4:6])
        assert domain.share("add", path + b":rw:at=/srv/named") == ""
        domain.sees("touch /srv/named/new")
        assert os.path.exists(path + b"/new")
        (row,) = domain.listed()
        assert str(row["host"]).isprintable()
        assert domain.share("remove", "/srv/named") == ""


@pytest.mark.parametrize(
    "word, message",
    [
        ("/missing", "cannot share /missing: No such file or directory"),
        ("/", "the whole root directory cannot be shared"),
        ("/proc", "/proc is the host's kernel"),
        ("FOLDER/file", "it is not a directory"),
        ("FOLDER:at=/usr", "a share cannot be at /usr"),
        ("FOLDER:at=/dev/x", "the guest fills /dev itself"),
        ("FOLDER:at=/etc/passwd", "cannot be put at /etc/passwd in the guest: make directory /etc/passwd"),
        ("FOLDER:at=relative", "is not absolute"),
    ],
)
def test_what_cannot_be_shared_is_refused_and_changes_nothing(
    domain: Live, folder: Path, word: str, message: str
) -> None:
    """One sentence and a hint; programs can be started as before, and the next share is added."""
    before = domain.sees("cat /proc/mounts")
    said = domain.share("add", word.replace("FOLDER", str(folder)))
    assert message in said
    assert "hint: " in said
    assert domain.sees("cat /proc/mounts") == before
    assert domain.share("add", str(folder)) == ""
    assert f"two shares are at {folder}" in domain.share("add", str(folder))
    assert "would lie in the one at" in domain.share("add", f"{folder.parent}:at={folder}/inner")
    assert domain.share("remove", str(folder)) == ""
    assert f"{folder} is not shared" in domain.share("remove", str(folder))


def test_an_existing_directory_of_the_guest_keeps_its_owner_and_mode(domain: Live, folder: Path) -> None:
    """A share lies over a directory of the guest for as long as it is there, and changes nothing of it."""
    domain.sees("mkdir -p ~/own; chmod 700 ~/own; echo mine >~/own/mine")
    before = domain.sees("stat -c '%a %u' ~/own")
    home = domain.sees("echo ~").strip()
    assert domain.share("add", f"{folder}:at={home}/own") == ""
    assert domain.sees("cat ~/own/file") == "text\n"
    assert domain.share("remove", f"{home}/own") == ""
    assert domain.sees("cat ~/own/mine; stat -c '%a %u' ~/own") == "mine\n" + before


def test_two_at_once(runner: Runner, domain: Live, folder: Path) -> None:
    """Both are there afterwards; of two at one place exactly one is."""
    program = runner.program
    for place, good in (("/srv/two", 1), (None, 4)):
        adding = [
            runner.user.popen(
                [program, "share", "add", domain.ident, f"{folder}:at={place or f'/srv/two{number}'}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for number in range(4)
        ]
        statuses = [(one.communicate(), one.returncode)[1] for one in adding]
        assert sorted(statuses) == [0] * good + [125] * (4 - good)
        places = [str(row["guest"]) for row in domain.listed()]
        assert len(places) == good
        for shared in places:
            assert domain.sees(f"cat {shared}/file") == "text\n"
            assert domain.share("remove", shared) == ""


@pytest.mark.long
def test_many_leave_nothing(domain: Live, folder: Path) -> None:
    """After dozens were added, used and removed the guest's mounts and the processes' descriptors are as before."""

    def held() -> tuple[str, dict[str, tuple[int, int]]]:
        processes = domain.audit()["processes"]
        assert isinstance(processes, list)
        counts = {
            one["role"]: (len(one["files"] or ()), len(one["mounts"]))
            for one in processes
            if one["role"] == "fs-shares"
        }
        return domain.sees("cat /proc/mounts"), counts

    domain.share("add", str(folder))
    domain.share("remove", str(folder))
    before = held()
    for _ in range(2):
        assert domain.share("add", *(f"{folder}:at=/srv/many{number}" for number in range(50))) == ""
        assert domain.sees("cat /srv/many*/file") == "text\n" * 50
        assert domain.share("remove", *(f"/srv/many{number}" for number in range(50))) == ""
    assert held() == before


@pytest.mark.long
def test_a_command_that_is_killed_leaves_a_whole_domain(runner: Runner, domain: Live, folder: Path) -> None:
    """Whenever `share add` dies, its share is either there or not, and the next one can be added and removed."""
    for delay in (0.0, 0.03, 0.06, 0.09, 0.12, 0.2):
        adding = runner.user.popen(
            [runner.program, "share", "add", domain.ident, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            adding.wait(delay)
        except subprocess.TimeoutExpired:
            adding.kill()
        adding.wait()
        # Asked after it, and so answered when it is over.
        assert domain.share("add", f"{folder}:at=/srv/after") == ""
        for row in domain.listed():
            assert domain.sees(f"cat {row['guest']}/file") == "text\n"
            assert domain.share("remove", str(row["guest"])) == ""
    assert domain.listed() == []


def test_shares_of_the_start_go_too_and_one_can_come_back(runner: Runner, folder: Path) -> None:
    """A domain with a share from its start needs no option; what is removed can be added again, otherwise."""
    with live(runner, "--share", f"{folder}:rw") as domain:
        assert domain.sees(f"cat {folder}/file") == "text\n"
        domain.sees(f"echo x >{folder}/from-guest")
        assert domain.listed() == [
            {"guest": str(folder), "host": str(folder), "writable": True, "added": False}
        ]
        assert domain.share("remove", str(folder)) == ""
        assert (folder / "from-guest").exists()
        assert "No such file" in domain.sees(f"cat {folder}/file")
        assert domain.share("add", str(folder)) == ""
        assert "Read-only file system" in domain.sees(f"echo x >{folder}/again")
        domain.audit()


def test_a_domain_without_a_server_says_what_provides_one(runner: Runner, folder: Path) -> None:
    """Nothing is changed, and the hint names the option."""
    with live(runner) as domain:
        said = domain.share("add", str(folder))
        assert "was started without shares and has nothing that could serve one" in said
        assert "hint: Start it with --share-later" in said
        assert "has nothing that could serve one" in domain.share("remove", str(folder))
        assert domain.listed() == []


def test_a_container_refuses_with_the_reason(cloche: Runner, tmp_path: Path) -> None:
    """The bwrap driver has no server whose tree could be changed."""
    with live(cloche, "--driver", "bwrap") as domain:
        assert "the bwrap driver cannot change what is shared" in domain.share(
            "add", str(tmp_path.anchor + "tmp")
        )
    refused = cloche("--driver", "bwrap", "--share-later", "true")
    assert (refused.returncode, b"--share-later" in refused.stderr) == (125, True)


def test_a_domain_that_ends_in_between_is_said_to_be_gone(runner: Runner, folder: Path) -> None:
    """Whether it ends before or while it is asked."""
    with live(runner, "--share-later") as domain:
        supervisor = int(str(domain.audit()["supervisor"]))
        processes = domain_processes(supervisor)
        os.kill(supervisor, signal.SIGSTOP)
        adding = runner.user.popen(
            [runner.program, "share", "add", domain.ident, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        ps = runner("ps")
        # Whatever is found wrong afterwards: nobody waits for one that stands still.
        os.kill(supervisor, signal.SIGKILL)
        assert [domain.ident, "-", "(does", "not", "answer)"] in [
            line.split()[:5] for line in ps.stdout.decode().splitlines()
        ]
        said = adding.communicate(timeout=60)[1]
        assert adding.returncode == 125
        assert domain.ident.encode() in said
        assert b"hint: " in said
        assert processes
        assert "you have no running domain" in domain.share("add", str(folder))


def test_ps_tells_what_runs(runner: Runner) -> None:
    """Program, driver, accelerator and memory; what was given up is red on a terminal and said without one."""
    with live(runner, "--memory", "256M", "--insecure-no-jail", "namespaces") as domain:
        lines = runner("ps").stdout.decode().splitlines()
        place = next(number for number, line in enumerate(lines) if line.startswith(domain.ident))
        words = lines[place].split()
        assert words[1:4] == ["-", "running", "sh"]
        assert {"qemu", "tcg", "256"} <= set(words)
        assert lines[place + 1] == "  GIVEN UP by --insecure-no-jail=namespaces"
        with TerminalProgram(runner.user, [runner.program, "ps"]) as listing:
            listing.expect(b"\033[31m  GIVEN UP by --insecure-no-jail=namespaces\033[0m")
            assert listing.wait() == 0
