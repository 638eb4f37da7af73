"""The stage: what of the host a guest sees, and above all what it does not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.host.facts import collect_facts
from cloche.model.facts import PathFact, User
from cloche.model.jail import Bind, BindFlag, Dir, File, Symlink
from cloche.plan.shares import contains
from cloche.plan.stage import below, build_stage, etc_files, stage_candidates
from support.plans import ALICE, ROOT, facts, paths

MACHINE_ID = "0123456789abcdef" * 2

#: What must not be seen, nor anything above or below it.
SECRETS = (
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/machine-id",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/fstab",
    "/etc/crypttab",
    "/etc/krb5.keytab",
    "/etc/NetworkManager",
    "/etc/wpa_supplicant",
    "/etc/cron.d",
    "/etc/cups",
    "/etc/apt",
    "/etc/environment",
    "/etc/gitconfig",
    "/etc/wgetrc",
    "/etc/npmrc",
    "/etc/pip.conf",
    "/etc/netrc",
    "/etc/maven/settings.xml",
    "/etc/php/8.2/fpm",
    "/etc/mysql",
    "/etc/docker",
    "/etc/kubernetes",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/letsencrypt",
    "/etc/pki/tls/private",
    "/home",
    "/root",
    "/var",
    "/run",
    "/dev",
    "/proc",
    "/sys",
    "/tmp",
    "/boot",
    "/srv",
    "/mnt",
    "/media",
)
LINE_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def stage(there: dict[str, PathFact] | None = None) -> tuple[object, ...]:
    """Return the operations of the stage of a host that has everything, or what is said."""
    host = facts()._replace(paths=paths() if there is None else there)
    return build_stage(host, hostname="guest", machine_id=MACHINE_ID)


def files(user: User = ALICE) -> dict[str, str]:
    """Return the content of the guest's own files of /etc."""
    made = etc_files(user, hostname="guest", machine_id=MACHINE_ID)
    return {path: content.decode("utf-8", "surrogateescape") for path, _, content in made}


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_never_bound(secret: str) -> None:
    """Nothing bound from the host is a secret place, holds one, or lies in one."""
    for op in stage():
        if isinstance(op, Bind):
            source = op.source.decode()
            assert not contains(source, secret)
            assert not contains(secret, source)


def test_this_hosts_stage_shows_nothing_private() -> None:
    """Of this very host, no file is shown below /etc that not everybody may read."""
    private = []
    for path in collect_facts().paths:
        if not path.startswith("/etc/"):
            continue
        for directory, _, names in os.walk(path):
            private += [name for name in names if not os.lstat(os.path.join(directory, name)).st_mode & 0o004]
        private += [path] * (not os.lstat(path).st_mode & 0o004)
    assert private == []


def test_what_is_bound_is_read_only_and_has_no_devices() -> None:
    """Every bind keeps its place, is read-only without devices, whole, and may vanish before it is made."""
    wanted = BindFlag.READ_ONLY | BindFlag.NODEV | BindFlag.RECURSIVE | BindFlag.OPTIONAL
    for op in stage():
        if isinstance(op, Bind):
            assert op.source == op.path
            assert op.flags == wanted


def test_links_stay_links() -> None:
    """What is a link on the host is the same link in the guest, however it was written."""
    links = {op.path: op.target for op in stage() if isinstance(op, Symlink)}
    assert links[b"/bin"] == b"usr/bin"
    assert links[b"/etc/localtime"] == b"/usr/share/zoneinfo/Europe/Vienna"
    assert links[b"/etc/os-release"] == b"../usr/lib/os-release"
    bound = {op.path for op in stage() if isinstance(op, Bind)}
    assert not bound & set(links)


def test_a_links_target_may_be_any_bytes() -> None:
    """A link whose target is not UTF-8 is made as it is."""
    odd = b"/op\xfft"
    changed = paths() | {"/opt": PathFact("link", os.fsdecode(odd))}
    assert Symlink(odd, b"/opt") in stage(changed)


def test_what_the_host_lacks_is_left_out() -> None:
    """A path without a fact has no operation; with no facts at all the guest still has its own files."""
    assert not any(getattr(op, "path", b"").startswith(b"/opt") for op in stage(paths("/opt")))
    bare = stage({})
    assert not any(isinstance(op, Bind) for op in bare)
    assert {op.path for op in bare if isinstance(op, File)} == {path.encode() for path in files()}


def test_no_place_is_made_twice() -> None:
    """No two operations make the same path, and parents come before what is in them."""
    made = [op.path for op in stage() if isinstance(op, (Bind, Dir, File, Symlink))]
    assert len(made) == len(set(made))
    solid = {op.path for op in stage() if isinstance(op, (Bind, File, Symlink))}
    for path in made:
        above = path.rpartition(b"/")[0]
        while above:
            assert above not in solid, path
            above = above.rpartition(b"/")[0]


def test_directories_for_everybody_are_sticky() -> None:
    """The modes of the directories are those every system has."""
    modes = {op.path: op.mode for op in stage() if isinstance(op, Dir)}
    assert modes[b"/tmp"] == modes[b"/var/tmp"] == modes[b"/run/lock"] == 0o1777
    assert modes[b"/root"] == 0o700


def test_below_moves_everything() -> None:
    """A stage below a prefix has the same operations there; link targets and sources stay."""
    moved = below(b"/stage", build_stage(facts(), hostname="guest", machine_id=MACHINE_ID))
    for before, after in zip(stage(), moved, strict=True):
        assert isinstance(before, (Bind, Dir, File, Symlink))
        assert after.path == b"/stage" + before.path
        assert after._replace(path=before.path) == before


def test_passwd_knows_four_people() -> None:
    """The guest knows root, daemon, nobody and the caller, and nobody has a password."""
    passwd = [line.split(":") for line in files()["/etc/passwd"].splitlines()]
    assert [line[0] for line in passwd] == ["root", "daemon", "nobody", "alice"]
    assert passwd[-1] == ["alice", "x", "1000", "1000", "Alice", "/home/alice", "/bin/bash"]
    assert all(len(line) == 7 for line in passwd)
    shadow = [line.split(":") for line in files()["/etc/shadow"].splitlines()]
    assert [line[:2] for line in shadow] == [["root", "*"], ["alice", "*"]]
    modes = {path: mode for path, mode, _ in etc_files(ALICE, hostname="guest", machine_id=MACHINE_ID)}
    assert modes["/etc/shadow"] == 0o600


def test_root_is_not_named_twice() -> None:
    """When root calls, the guest knows root, daemon and nobody."""
    assert [line.split(":")[0] for line in files(ROOT)["/etc/passwd"].splitlines()] == [
        "root",
        "daemon",
        "nobody",
    ]
    assert files(ROOT)["/etc/group"].count("root:") == 1


@pytest.mark.parametrize(
    "name, uid, group, gid",
    [
        ("nobody", 65534, "nogroup", 65534),
        ("daemon", 1, "daemon", 1),
        ("nobody", 99, "nobody", 99),
        ("me", 1, "tty", 7),
    ],
)
def test_a_caller_who_has_a_standard_name_or_number(name: str, uid: int, group: str, gid: int) -> None:
    """Names and numbers stay unique when the caller has one of the guest's own."""
    content = files(User(name, uid, gid, group, "/home/x", "/bin/sh", ""))
    for path, own, number in (("/etc/passwd", name, uid), ("/etc/group", group, gid)):
        lines = [line.split(":") for line in content[path].splitlines()]
        assert len({line[0] for line in lines}) == len({line[2] for line in lines}) == len(lines)
        assert [line[2] for line in lines if line[0] == own] == [str(number)]


@given(st.builds(User, LINE_TEXT, st.integers(1, 2**32 - 2), st.integers(0, 2**32 - 2), *[LINE_TEXT] * 4))
def test_nothing_can_be_injected_into_passwd(user: User) -> None:
    """Whatever a directory service says of the caller, no line, field, second root or password comes of it."""
    content = files(user)
    for path, fields in (("/etc/passwd", 7), ("/etc/group", 4), ("/etc/shadow", 9)):
        lines = [line.split(":") for line in content[path].removesuffix("\n").split("\n")]
        assert all(len(line) == fields for line in lines)
        assert len(lines) <= {"/etc/passwd": 4, "/etc/group": 9, "/etc/shadow": 2}[path]
        if path != "/etc/shadow":
            assert [line for line in lines if line[2] == "0"] == lines[:1]
        assert all(line[1] in ("x", "*") for line in lines)
        assert content[path].isprintable() or set(content[path]) - {"\n"} <= {
            c for c in content[path] if c.isprintable()
        }


def test_bytes_that_are_not_text_are_kept() -> None:
    """A real name in an old encoding goes into passwd as the bytes it is."""
    user = ALICE._replace(gecos=os.fsdecode(b"J\xfcrgen"))
    passwd = next(
        content
        for path, _, content in etc_files(user, hostname="h", machine_id=MACHINE_ID)
        if path == "/etc/passwd"
    )
    assert b":J\xfcrgen:" in passwd


def test_the_guest_has_names_of_its_own() -> None:
    """Host name, hosts and machine-id are the guest's, and agree."""
    made = files()
    assert made["/etc/hostname"] == "guest\n"
    assert "127.0.1.1\tguest\n" in made["/etc/hosts"]
    assert made["/etc/machine-id"] == MACHINE_ID + "\n"
    assert Symlink(b"/etc/machine-id", b"/var/lib/dbus/machine-id") in stage()


def test_candidates_are_plain_paths() -> None:
    """Every candidate is absolute and normal, and named once."""
    candidates = stage_candidates()
    assert len(candidates) == len(set(candidates))
    assert all(path == os.path.normpath(path) and path.startswith("/") for path in candidates)
