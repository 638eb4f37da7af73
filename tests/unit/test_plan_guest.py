"""What the agent does before the program, and the program's surroundings: nothing of the host leaks into them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import UsageError
from cloche.model.facts import SkeletonEntry
from cloche.model.guest import (
    MNT_DETACH,
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    UMOUNT_NOFOLLOW,
    CopyTree,
    GuestCommand,
    MakeSymlink,
    Mkdir,
    Mount,
    Step,
    SwitchRoot,
    Unmount,
    WriteFile,
)
from cloche.model.request import Include, RunRequest, Share
from cloche.plan.guest import (
    build_command,
    build_environment,
    build_first_steps,
    build_machine_steps,
    build_ready_steps,
    guest_path,
    is_below,
    resolve_user,
    shown_trees,
)
from cloche.plan.stage import EMPTY_DIRECTORIES, SYSTEM_TREES
from support.plans import ALICE, ROOT, facts, request, share

if TYPE_CHECKING:
    from cloche.model.facts import User

BYTES = st.binary(max_size=12).map(lambda data: data.replace(b"\0", b"?"))
NAMES = BYTES.map(lambda data: data.replace(b"=", b"?")).filter(bool)

#: What a caller's environment may hold and no guest may see.
PRIVATE = {
    b"AWS_SECRET_ACCESS_KEY": b"leak",
    b"SSH_AUTH_SOCK": b"/tmp/leak",
    b"SSH_CONNECTION": b"leak",
    b"GPG_AGENT_INFO": b"leak",
    b"DBUS_SESSION_BUS_ADDRESS": b"unix:path=/leak",
    b"DISPLAY": b":leak",
    b"WAYLAND_DISPLAY": b"leak",
    b"XAUTHORITY": b"/leak",
    b"XDG_RUNTIME_DIR": b"/run/user/leak",
    b"XDG_SESSION_ID": b"leak",
    b"GITHUB_TOKEN": b"leak",
    b"http_proxy": b"http://user:leak@proxy",
    b"LD_PRELOAD": b"/leak.so",
    b"LD_LIBRARY_PATH": b"/leak",
    b"PYTHONPATH": b"/leak",
    b"PWD": b"/leak",
    b"OLDPWD": b"/leak",
    b"MAIL": b"/var/mail/leak",
    b"HOSTNAME": b"leak",
    b"LC_PVE_TICKET": b"leak",
    b"LC_SECRET": b"leak",
    b"HOME": b"/leak",
    b"USER": b"leak",
    b"LOGNAME": b"leak",
    b"SHELL": b"/leak",
    b"BASH_ENV": b"/leak",
    b"BASH_FUNC_leak%%": b"() { leak; }",
}

#: What a person says about how programs shall speak, look and edit; the PATH is made anew.
HARMLESS = set(
    b"TERM COLORTERM LANG LANGUAGE TZ NO_COLOR CLICOLOR LS_COLORS EDITOR VISUAL PAGER LESS LC_ALL LC_ADDRESS "
    b"LC_COLLATE LC_CTYPE LC_IDENTIFICATION LC_MEASUREMENT LC_MESSAGES LC_MONETARY LC_NAME LC_NUMERIC LC_PAPER "
    b"LC_TELEPHONE LC_TIME".split()
)


def environment(host: dict[bytes, bytes], person: User = ALICE, **options: Any) -> dict[bytes, bytes]:
    """Return the program's environment for a host's."""
    words = build_environment(request(**options), facts(environment=host), person, SYSTEM_TREES)
    split = [word.partition(b"=") for word in words]
    assert len({name for name, _, _ in split}) == len(words)
    return {name: value for name, _, value in split}


def command(asked: RunRequest, cwd: str = "/home/alice", user: User = ALICE) -> GuestCommand:
    """Return the program as it will be started."""
    return build_command(asked, facts(user, cwd=cwd), resolve_user(asked, user), shown_trees(asked))


def test_the_hosts_environment_stays_on_the_host() -> None:
    """Nothing but language, time zone, terminal and a person's tools reaches the program."""
    env = environment(PRIVATE | {b"TERM": b"xterm", b"LANG": b"de_AT.UTF-8", b"LC_TIME": b"C", b"TZ": b"UTC"})
    assert env == {
        b"TERM": b"xterm",
        b"LANG": b"de_AT.UTF-8",
        b"LC_TIME": b"C",
        b"TZ": b"UTC",
        b"HOME": b"/home/alice",
        b"USER": b"alice",
        b"LOGNAME": b"alice",
        b"SHELL": b"/bin/bash",
        b"PATH": b"/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
    }


@given(st.dictionaries(NAMES, BYTES.map(lambda data: b"secret" + data), max_size=8))
def test_no_variable_leaks(host: dict[bytes, bytes]) -> None:
    """Whatever the caller has set, by whatever name, only values on a short list reach the program."""
    passed_on = {name for name, value in environment(host).items() if value.startswith(b"secret")}
    assert passed_on <= HARMLESS


def test_the_terminal_has_a_type() -> None:
    """Without a terminal type the program is told that it can do nothing."""
    assert environment({})[b"TERM"] == b"dumb"


def test_given_variables_come_last() -> None:
    """What the user sets replaces what cloche would set, the later of two values wins, bytes stay bytes."""
    given_ = ((b"PATH", b"/x"), (b"A", b"1"), (b"A", b"2 = \xff\n"), (b"HOME", b""))
    env = environment({}, env=given_)
    assert (env[b"PATH"], env[b"A"], env[b"HOME"]) == (b"/x", b"2 = \xff\n", b"")


@pytest.mark.parametrize("variable", [(b"", b"x"), (b"A=B", b"x"), (b"A\0", b"x"), (b"A", b"x\0y")])
def test_what_no_environment_can_hold(variable: tuple[bytes, bytes]) -> None:
    """A name that is empty or holds an equals sign, and a NUL byte anywhere, are refused."""
    with pytest.raises(UsageError):
        environment({}, env=(variable,))


def test_path_keeps_what_the_guest_has() -> None:
    """The caller's directories that the guest sees stay in their order, then come the usual ones, each once."""
    caller = (
        b"/home/alice/bin:/opt/x/bin:/usr/bin::.:bin:/usr/../home/alice/bin:/usr/local/bin:/usrx:/opt/\xff"
    )
    path = guest_path(caller, ALICE, SYSTEM_TREES)
    assert path == b"/opt/x/bin:/usr/bin:/usr/local/bin:/opt/\xff:/bin:/usr/local/games:/usr/games"


def test_path_of_shares_and_of_root() -> None:
    """A shared directory's programs are found; root has the directories for administrators too."""
    shown = shown_trees(request(shares=(share("/home/alice/bin"), share("/home/alice/lib", "/elsewhere"))))
    path = guest_path(b"/home/alice/bin:/home/alice/lib:/elsewhere", ALICE, shown)
    assert path.split(b":")[:2] == [b"/home/alice/bin", b"/usr/local/bin"]
    assert b"/usr/sbin" in guest_path(b"", ROOT, shown).split(b":")


@given(st.lists(st.sampled_from([b"", b"/usr", b"/usr/bin", b"rel", b"/home/x", b"/opt//y", b"/bin/.."])))
def test_path_has_only_what_the_guest_has(parts: list[bytes]) -> None:
    """Whatever the caller's PATH, every part of the guest's is absolute, once, and below a shown tree."""
    shown = tuple(tree.encode() for tree in SYSTEM_TREES)
    found = guest_path(b":".join(parts), ALICE, SYSTEM_TREES).split(b":")
    assert len(found) == len(set(found))
    assert all(is_below(part, shown) and b".." not in part for part in found)


@pytest.mark.parametrize(
    "cwd, shares, expected",
    [
        ("/usr/share", (), "/usr/share"),
        ("/usr", (), "/usr"),
        ("/usrx", (), "/home/alice"),
        ("/home/alice/project", (), "/home/alice"),
        ("/", (), "/home/alice"),
        ("/home/alice/project/src", (share("/home/alice/project"),), "/home/alice/project/src"),
        ("/home/alice/project", (share("/home/alice/project"),), "/home/alice/project"),
        ("/home/alice/projects", (share("/home/alice/project"),), "/home/alice"),
        ("/data/p/src", (share("/data/p", "/home/alice/p"),), "/home/alice/p/src"),
        ("/data/p", (share("/data", "/x"), share("/data/p", "/y")), "/y"),
        ("/data/p/\udcff", (share("/data/p", "/y"),), "/y/\udcff"),
    ],
)
def test_where_the_program_starts(cwd: str, shares: tuple[Share, ...], expected: str) -> None:
    """It starts in the caller's directory, wherever the guest has it, else in the home."""
    assert command(request(shares=shares), cwd).cwd == os.fsencode(expected)


@pytest.mark.parametrize(
    "workdir, expected",
    [
        ("/x", b"/x"),
        ("sub", b"/usr/share/sub"),
        ("../lib", b"/usr/share/../lib"),
        ("/\udcff", b"/\xff"),
        (".", b"/usr/share/."),
    ],
)
def test_the_directory_asked_for(workdir: str, expected: bytes) -> None:
    """A directory that was asked for is taken as it is, a relative one seen from where the program would start."""
    assert command(request(workdir=workdir), "/usr/share").cwd == expected


@pytest.mark.parametrize("workdir", ["", "a\0b"])
def test_what_is_no_directory(workdir: str) -> None:
    """An empty directory and one with a NUL byte are refused."""
    with pytest.raises(UsageError, match="names no directory"):
        command(request(workdir=workdir))


def test_arguments_are_bytes_without_nul() -> None:
    """Arguments pass as they are but for a NUL byte, which ends every string of a program."""
    words = (b"prog", b"", b" ", b"\xff\n'\"\\", b"-x")
    assert command(request(*words)).argv == words
    with pytest.raises(UsageError, match="NUL"):
        command(request(b"prog", b"a\0b"))


def test_the_program_is_its_persons() -> None:
    """Ids, umask and limits go along; without a limit there is none."""
    made = command(request(pids=7, strace=True))
    assert (made.uid, made.gid, made.groups, made.umask, made.pids_max, made.strace) == (
        1000,
        1000,
        (1000,),
        0o022,
        7,
        True,
    )
    assert command(request()).pids_max == 0


@pytest.mark.parametrize("nice, given", [(-20, 0), (0, 0), (7, 7), (19, 19)])
def test_what_the_caller_ignores_and_its_niceness_go_along(nice: int, given: int) -> None:
    """Ignored signals are the program's, too, and niceness; a higher priority than the usual one is not given."""
    known = facts(ALICE)._replace(ignored=3, nice=nice)
    made = build_command(request(), known, ALICE, ())
    assert (made.ignored, made.nice) == (3, given)


@pytest.mark.parametrize(
    "wanted, expected",
    [
        (None, ("alice", 1000, "/home/alice")),
        ("alice", ("alice", 1000, "/home/alice")),
        ("1000", ("alice", 1000, "/home/alice")),
        ("01000", ("alice", 1000, "/home/alice")),
        ("root", ("root", 0, "/root")),
        ("0", ("root", 0, "/root")),
        ("000", ("root", 0, "/root")),
        ("nobody", ("nobody", 65534, "/")),
        ("65534", ("nobody", 65534, "/")),
        ("4711", ("4711", 4711, "/")),
        ("4294967294", ("4294967294", 4294967294, "/")),
    ],
)
def test_whom_the_program_runs_as(wanted: str | None, expected: tuple[str, int, str]) -> None:
    """A name the guest knows or a number; different spellings of a number are the same person."""
    person = resolve_user(request(user=wanted), ALICE)
    assert (person.name, person.uid, person.home) == expected


@pytest.mark.parametrize(
    "wanted", ["", "bob", "-1", "4294967295", "9" * 11, "9" * 5000, "²", "1000:1000", "alice\n", "+1", " 0"]
)
def test_people_the_guest_does_not_know(wanted: str) -> None:
    """Any other word is refused, with those the guest knows in the hint."""
    with pytest.raises(UsageError) as caught:
        resolve_user(request(user=wanted), ALICE)
    assert caught.value.hint == "It knows root, alice, nobody; a number is taken as it is."
    with pytest.raises(UsageError) as caught:
        resolve_user(request(user=wanted), ROOT)
    assert caught.value.hint == "It knows root, nobody; a number is taken as it is."


def test_privileged_means_root() -> None:
    """--privileged is root, may be said together with root's names, and contradicts another user."""
    for wanted in (None, "root", "0"):
        assert resolve_user(request(privileged=True, user=wanted), ALICE).uid == 0
    with pytest.raises(UsageError, match="contradict"):
        resolve_user(request(privileged=True, user="alice"), ALICE)


def machine_steps(
    shares: tuple[Share, ...] = (),
    includes: tuple[Include, ...] = (),
    person: User = ALICE,
    skeleton: tuple[SkeletonEntry, ...] | None = None,
) -> list[Step]:
    """Return the steps that set up a machine for alice."""
    asked = request(shares=shares, includes=includes)
    return list(
        build_machine_steps(asked, ALICE, person, skeleton, hostname="guest", loopback=True, entropy=True)
    )


def targets(steps: list[Step]) -> list[bytes]:
    """Return where things are mounted, in order, without the prefix of the new root."""
    return [step.target for step in steps if isinstance(step, Mount)]


def test_without_shares_there_is_no_second_file_system() -> None:
    """The shares' file system is mounted exactly when something is shared or included."""

    def mounts(steps: list[Step]) -> list[bytes]:
        return [step.source for step in steps if isinstance(step, Mount) and step.fstype == b"virtiofs"]

    assert mounts(machine_steps()) == [b"system"]
    assert mounts(machine_steps((share("/data"),))) == [b"system", b"shares"]
    assert mounts(machine_steps(includes=(Include("/f", "/etc/f"),))) == [b"system", b"shares"]


def test_shares_are_mounted_outer_ones_first() -> None:
    """Each share is bound at its place, a read-only one is made so, and what lies inside another comes after it."""
    steps = machine_steps((share("/data/in/side"), share("/data", writable=True), share("/a", "/data2")))
    bound = [step for step in steps if isinstance(step, Mount) and step.flags & MS_BIND]
    assert [(step.source, step.target, bool(step.flags & MS_REMOUNT)) for step in bound] == [
        (b"/run/cloche-shares/1", b"/data", False),
        (b"/run/cloche-shares/0", b"/data/in/side", False),
        (b"", b"/data/in/side", True),
        (b"/run/cloche-shares/2", b"/data2", False),
        (b"", b"/data2", True),
    ]
    assert all(step.flags & MS_RDONLY for step in bound if step.flags & MS_REMOUNT)


def test_nothing_is_made_in_a_share() -> None:
    """No directory is made, and no file copied, inside what is mounted already: it would be the host's."""
    shares = (
        share("/data", writable=True),
        share("/data/in", writable=True),
        share("/home/alice", writable=True),
    )
    steps = machine_steps(shares, (Include("/f", "/home/alice2/f"),))
    mounted: list[bytes] = []
    for step in steps:
        if isinstance(step, Mount) and step.flags & MS_BIND:
            mounted.append(step.target)
        path = step.path if isinstance(step, Mkdir) else step.to if isinstance(step, CopyTree) else None
        assert path is None or not is_below(path, tuple(mounted))


def test_shares_come_into_the_new_root_and_their_server_leaves_it() -> None:
    """What is shared is bound and copied when the root is switched; then the whole of it is out of sight."""
    steps = machine_steps((share("/data"),), (Include("/f", "/etc/f"),))
    switched = next(index for index, step in enumerate(steps) if isinstance(step, SwitchRoot))
    aside = next(
        index for index, step in enumerate(steps) if isinstance(step, Mount) and step.source == b"shares"
    )
    gone = steps.index(Unmount(b"/run/cloche-shares", MNT_DETACH | UMOUNT_NOFOLLOW))
    uses = [
        index for index, step in enumerate(steps) if isinstance(step, CopyTree) and b"shares" in step.source
    ]
    uses += [index for index, step in enumerate(steps) if isinstance(step, Mount) and step.flags & MS_BIND]
    assert steps[aside - 1] == Mkdir(b"/run/cloche-shares", 0o700)
    assert switched < aside < min(uses) <= max(uses) < gone
    assert Unmount(b"/run/cloche-shares", MNT_DETACH | UMOUNT_NOFOLLOW) not in machine_steps()


def test_a_clone_has_the_first_steps_behind_it() -> None:
    """What is done in a template and what is left of it are together what a machine that boots does."""
    shares, small = (share("/data"),), (SkeletonEntry(b".bashrc", "file", 0o644, b"# hello"),)
    steps: dict[bool, tuple[Step, ...]] = {}
    for restored in (False, True):
        steps[restored] = build_machine_steps(
            request(shares=shares),
            ALICE,
            ALICE,
            small,
            hostname="guest",
            loopback=False,
            entropy=True,
            restored=restored,
        )
    first = build_first_steps(ALICE, small, hostname="guest", devices="process")
    ready = build_ready_steps(ALICE)
    assert steps[False] == (*steps[True][:2], *first, ready[0], *steps[True][2:])
    assert ready[1] == Mkdir(b"/home/alice", 0o700, 1000, 1000)


def test_the_home_is_fresh_and_private() -> None:
    """The home is made for its owner alone, from the skeleton, in the layer that is not mounted over yet."""
    home = b"/cloche/layer/upper/home/alice"
    small = (
        SkeletonEntry(b".bashrc", "file", 0o644, b"# hello"),
        SkeletonEntry(b"bin", "dir", 0o755),
        SkeletonEntry(b"bin/link", "link", 0, b"/usr/bin/true"),
    )
    wanted: dict[tuple[SkeletonEntry, ...] | None, list[Step]] = {
        small: [
            WriteFile(home + b"/.bashrc", 0o644, 1000, 1000, b"# hello"),
            Mkdir(home + b"/bin", 0o755, 1000, 1000),
            MakeSymlink(b"/usr/bin/true", home + b"/bin/link"),
        ],
        None: [CopyTree(b"/cloche/system/etc/skel", home, 1000, 1000)],
    }
    for skeleton, filling in wanted.items():
        steps = machine_steps(skeleton=skeleton)
        made = steps.index(Mkdir(home, 0o700, 1000, 1000))
        assert steps[made + 1 : made + 1 + len(filling)] == filling
        overlay = next(
            index for index, step in enumerate(steps) if isinstance(step, Mount) and step.fstype == b"overlay"
        )
        assert made + len(filling) < overlay


def test_directories_on_the_way() -> None:
    """Below the home they are the user's, elsewhere root's; those every guest has keep their mode."""
    steps = machine_steps(
        (share("/d", "/home/alice/src/p"),), (Include("/f", "/etc/app/x/f"), Include("/g", "/tmp/g"))
    )
    made = [(step.path, step.uid) for step in steps if isinstance(step, Mkdir)]
    assert (b"/home/alice/src", 1000) in made
    assert (b"/home/alice/src/p", 1000) in made
    assert (b"/etc/app/x", 0) in made
    present = {path.encode() for path, _ in EMPTY_DIRECTORIES}
    assert not present & {path for path, _ in made}
    assert not {b"/etc", b"/usr", b"/home"} & {path for path, _ in made}


def test_copies_belong_to_whoever_runs() -> None:
    """A copy is its user's: the program's own person, at its directory, from its own place among the shares."""
    steps = machine_steps(includes=(Include("/a", "/f"), Include("/b", "/home/alice/x/g")), person=ROOT)
    copies = [step for step in steps if isinstance(step, CopyTree)][1:]
    assert copies == [
        CopyTree(b"/run/cloche-shares/i0", b"/", 0, 0),
        CopyTree(b"/run/cloche-shares/i1", b"/home/alice/x", 0, 0),
    ]


def test_the_same_request_gives_the_same_steps() -> None:
    """Planning is pure: nothing of the moment is in the steps."""
    assert machine_steps((share("/data"),)) == machine_steps((share("/data"),))
