"""Two ordinary users of one machine: neither sees or reaches what is the other's, whatever both call it.

What keeps them apart is the mode of the directories and, where somebody has opened these, the supervisor's look at who
asks. Each has its mutant: with the one taken away the other holds, with both the attack succeeds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.domain.control import wire
from cloche.domain.control.status import Ask
from support.domains import OWN, domain_processes
from support.runs import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a second user")

HERE = Path(__file__).parent
REACHING = (HERE / "reaching.py").read_text()
OPEN_SUPERVISOR = (HERE / "open_supervisor.py").read_text()
NAME = f"same{OWN}"
#: What a user has, below the home directory.
CACHE, DATA, STATE = ".cache/cloche", ".local/share/cloche", ".local/state/cloche"
#: What may be open in the caches: kernels that everybody could build, and nothing of a domain's.
_PUBLIC = ("kernels", "initramfs", "kvm-trial", "qemu-version", "tsc-khz", "said")


class Somebody(NamedTuple):
    """A user with a domain, a template, a machine that waits, and a snapshot, all of them called as the other's."""

    cloche: Runner
    user: OrdinaryUser
    ident: str

    def rows(self, *words: str) -> list[dict[str, object]]:
        """Return a listing."""
        done = self.cloche(*words, "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, object]] = json.loads(done.stdout)
        return found

    def processes(self) -> list[int]:
        """Return everything of the domain, its supervisor first."""
        warden = next(int(str(row["warden"])) for row in self.rows("ps") if row["name"] == NAME)
        status = Path(f"/proc/{warden}/status").read_text()
        supervisor = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
        return [supervisor, *domain_processes(supervisor)]

    def paths(self) -> list[str]:
        """Return everything that cloche keeps or has open for this user, directories first."""
        found = []
        for part in (CACHE, DATA, STATE, ".config/cloche"):
            for top, directories, files in os.walk(self.user.home / part):
                if os.path.basename(top) not in _PUBLIC:
                    found += [top, *(os.path.join(top, name) for name in (*directories, *files))]
        return sorted(set(found))

    def reach(self, paths: list[str], pids: list[int]) -> dict[str, object]:
        """Return what this user reaches of somebody else's."""
        words = ["/usr/bin/python3", "-IS", "-c", REACHING, wire.encode_request(Ask()).hex()]
        asked = json.dumps({"paths": paths, "pids": pids}).encode()
        done = self.user.run(words, input=asked, check=True)
        reached: dict[str, object] = json.loads(done.stdout)
        return reached


def settle(runner: Runner) -> Somebody:
    """Let a user have one of everything."""
    for words in (
        ("template", "build"),
        ("pool", "set", "--keep", "1"),
        ("run", "-d", "--name", NAME, "--", "sleep", "3600"),
        ("snapshot", "save", NAME, NAME),
    ):
        done = runner(*words)
        assert done.returncode == 0, (words, done.stderr)
    rows = json.loads(runner("ps", "--json").stdout)
    return Somebody(runner, runner.user, next(row["domain"] for row in rows if row["name"] == NAME))


def leave(runner: Runner) -> None:
    """Have nothing any more."""
    runner("pool", "set", "--keep", "0")
    runner("pool", "clear", "--forget")
    runner("stop", "-t", "0", NAME)
    runner("snapshot", "delete", NAME)
    while runner("rm", NAME).returncode == 0:
        pass


@pytest.fixture(scope="module")
def two(ordinary: OrdinaryUser, neighbour: OrdinaryUser) -> Iterator[tuple[Somebody, Somebody]]:
    """Provide both."""
    runners = [Runner(ordinary), Runner(neighbour)]
    try:
        first, second = map(settle, runners)
        yield first, second
    finally:
        for runner in runners:
            leave(runner)


@pytest.fixture(params=["first", "second"])
def pair(two: tuple[Somebody, Somebody], request: pytest.FixtureRequest) -> tuple[Somebody, Somebody]:
    """Provide who has something, and who wants at it."""
    return two if request.param == "first" else (two[1], two[0])


def test_nothing_of_anothers_is_listed(pair: tuple[Somebody, Somebody]) -> None:
    """Domains, templates, snapshots, machines that wait: each has his own of the same names, and no more."""
    owner, other = pair
    assert owner.user.entry.pw_uid != other.user.entry.pw_uid
    assert [row["domain"] for row in other.rows("ps") if row["name"] == NAME] == [other.ident]
    assert owner.ident not in json.dumps(other.rows("ps", "--all"))
    for listing in (("snapshot", "list"), ("template", "list")):
        assert str(owner.user.home) not in json.dumps(other.rows(*listing))
    assert [row["name"] for row in other.rows("snapshot", "list") if row["name"] == NAME] == [NAME]
    assert other.rows("template", "list")
    waiting = [
        {row["domain"] for row in json.loads(one.cloche("pool", "list", "--json").stdout)["machines"]}
        for one in pair
    ]
    assert all(waiting)
    assert not waiting[0] & waiting[1]


@pytest.mark.parametrize(
    "words",
    [
        ("stop", "IDENT"),
        ("kill", "IDENT"),
        ("exec", "IDENT", "true"),
        ("attach", "IDENT"),
        ("pause", "IDENT"),
        ("stats", "IDENT"),
        ("inspect", "IDENT"),
        ("logs", "IDENT"),
        ("wait", "IDENT"),
        ("rm", "IDENT"),
        ("rename", "IDENT", "mine"),
        ("cp", "IDENT:/etc/passwd", "."),
        ("fork", "IDENT"),
        ("snapshot", "save", "IDENT", "mine"),
        ("share", "list", "IDENT"),
        ("audit", "IDENT"),
    ],
    ids=lambda words: "-".join(words[:2] if words[0] in ("snapshot", "share") else words[:1]),
)
def test_no_verb_reaches_anothers(two: tuple[Somebody, Somebody], words: tuple[str, ...]) -> None:
    """Not even by its identity, also when the caller says that the other's directories are his own."""
    owner, other = two
    spoken = [word.replace("IDENT", owner.ident) for word in words]
    home = owner.user.home
    pretended = {
        "XDG_RUNTIME_DIR": f"{home}/.cache",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "XDG_DATA_HOME": f"{home}/.local/share",
    }
    for env in ({}, pretended):
        done = other.cloche(*spoken, env=env)
        assert done.returncode == 125, done
        assert b"Traceback" not in done.stderr
    assert [row["state"] for row in owner.rows("ps") if row["name"] == NAME] == ["running"]


def test_nothing_of_anothers_is_reached(pair: tuple[Somebody, Somebody]) -> None:
    """No file, directory or socket, and of the processes nothing but what everybody sees of everybody's."""
    owner, other = pair
    paths, pids = owner.paths(), owner.processes()
    assert [path for path in paths if path.endswith("supervisor.sock")]
    assert [path for path in paths if path.endswith("memory")]
    assert [path for path in paths if "run-pool/ready," in path]
    assert len(pids) >= 5
    assert other.reach(paths, pids) == {}
    # Who is let in reaches all of it: the attack is one.
    own = owner.reach(paths, pids)
    assert len(own) > len(paths) / 2
    assert own[str(pids[0])]
    assert [what for path, what in own.items() if path.endswith(f"{owner.ident}/supervisor.sock")] == [
        "answered"
    ]
    # Nor is there a name in the machine's one space of names that nobody owns.
    names = Path("/proc/net/unix").read_text().split()
    assert not [name for name in names if name.startswith("@") and ("cloche" in name or owner.ident in name)]


def opened(owner: Somebody) -> list[tuple[Path, int]]:
    """Open all directories on the way to the domain's socket, and the socket; return what they were."""
    door = owner.user.home / CACHE / "run" / owner.ident / "supervisor.sock"
    way = [door, *(path for path in door.parents if path.is_relative_to(owner.user.home))]
    before = [(path, path.stat().st_mode & 0o7777) for path in way]
    for path in way:
        path.chmod(0o777 if path == door else 0o755)
    return before


def test_an_open_directory_alone_lets_nobody_in(pair: tuple[Somebody, Somebody]) -> None:
    """The first mutant: directories that were opened by mistake. The supervisor sends away who is not its owner."""
    owner, other = pair
    before = opened(owner)
    door = str(before[0][0])
    try:
        assert other.reach([os.path.dirname(door)], []) != {}
        assert other.reach([door], []) == {}
        assert owner.reach([door], []) == {door: "answered"}
    finally:
        for path, mode in before:
            path.chmod(mode)


def test_without_both_the_attack_succeeds(two: tuple[Somebody, Somebody]) -> None:
    """The second: a supervisor that does not look who asks is kept by the directories; without these it answers."""
    owner, other = two
    name = f"open{OWN}"
    source = str(owner.user.project / "src")
    words = ["/usr/bin/python3", "-IS", "-c", OPEN_SUPERVISOR, source, str(other.user.entry.pw_uid)]
    done = owner.user.run([*words, "run", "-d", "--name", name, "--", "sleep", "3600"])
    assert done.returncode == 0, done.stderr
    try:
        ident = next(str(row["domain"]) for row in owner.rows("ps") if row["name"] == name)
        door = str(owner.user.home / CACHE / "run" / ident / "supervisor.sock")
        assert other.reach([door], []) == {}
        before = opened(owner._replace(ident=ident))
        try:
            assert other.reach([door], []) == {door: "answered"}
        finally:
            for path, mode in before:
                path.chmod(mode)
    finally:
        # Its own owner is sent away, so it is ended by a signal.
        warden = next(int(str(row["warden"])) for row in owner.rows("ps") if row["name"] == name)
        os.kill(warden, 9)
        owner.cloche("wait", name)
        assert owner.cloche("rm", name).returncode == 0


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize(
    "part", [f"{CACHE}/run", f"{CACHE}/run-pool", f"{DATA}/snapshots", f"{CACHE}/templates"]
)
def test_a_place_that_others_can_write_to_is_not_trusted(
    two: tuple[Somebody, Somebody], part: str, mode: int
) -> None:
    """Nothing is started, taken or restored from there: somebody else may have put it there."""
    owner, _ = two
    path = owner.user.home / part
    before = path.stat().st_mode & 0o7777
    words = ["snapshot", "restore", NAME] if part.endswith("snapshots") else ["run", "-v", "--", "true"]
    if part.endswith(("run", "templates")):
        words.insert(1, "--no-pool")  # which has been made already, and in a place of its own
    path.chmod(mode)
    try:
        done = owner.cloche(*words)
    finally:
        path.chmod(before)
    if part.endswith(("run", "snapshots")):
        assert (done.returncode, b"cloche: " in done.stderr) == (125, True), done
    else:
        # The run needs nothing of there.
        assert done.returncode == 0, done
        assert b"of the pool" not in done.stderr
        assert part.endswith("run-pool") or b"no template is taken from there" in done.stderr
