"""Machines that go on from a template: that they do, and that a template which is of no use costs nobody the run."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.domain.template import make_template
from cloche.host.facts import collect_facts
from cloche.model.guest import CopyTree
from cloche.plan.guest import build_first_steps
from support.hosts import ChangedHost, small_disk
from support.plans import request
from support.pty import TerminalProgram
from support.templates import OwnCache, orphans, own_cache, share_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cloche.model.guest import Step
    from support.runs import Runner
    from support.users import OrdinaryUser

_REMOVED = b"the template was of no use and is removed, this machine boots"


@pytest.fixture(scope="module")
def template(cloche: Runner) -> Path:
    """Provide a template of the ordinary user's."""
    done = cloche("template", "build")
    assert done.returncode == 0, done.stderr
    return cloche.user.home / ".cache" / "cloche" / "templates" / done.stdout.decode().strip()


@pytest.fixture
def fresh(ordinary: OrdinaryUser, folder: Path) -> Iterator[OwnCache]:
    """Provide cloche without any template."""
    with own_cache(ordinary, folder) as made:
        yield made


@pytest.fixture
def spoilt(fresh: OwnCache) -> tuple[OwnCache, Path]:
    """Provide cloche with a template that can be spoilt."""
    return fresh, fresh.build()


def test_a_run_goes_on_from_a_template(cloche: Runner, template: Path) -> None:
    """The plan says so, the VMM has no kernel to boot, and the program runs with its arguments and streams."""
    plan = cloche("run", "--dry-run", "cat").stdout.decode()
    assert f"start       from the template {template}" in plan
    assert " -kernel " not in plan
    done = cloche("--timings", "cat", input=b"through it and back")
    assert (done.returncode, done.stdout) == (0, b"through it and back")
    assert b"memory filled" in done.stderr


def _remembered(template: Path) -> set[bytes]:
    """Return the names in the system tree that the guest of a template knows (crates/fs/src/tree_state.rs)."""
    state = (template / "state").read_bytes()
    at = state.index(b"clochefs") + 20
    names = set()
    while len(header := state[at : at + 28]) == 28:
        number, parent, lookups, length = struct.unpack("<QQQI", header)
        if not 1 <= parent < number or not lookups or not 0 < length < 256:
            break
        names.add(state[at + 28 : at + 28 + length])
        at += 28 + length
    return names


def test_a_template_remembers_nothing_of_the_hosts(cloche: Runner, template: Path) -> None:
    """Its guest has the places of its own file systems in mind and the way to the home, nothing that may change."""
    above = {os.fsencode(part) for part in cloche.user.home.parts[1:-1]}
    assert _remembered(template) == {b"dev", b"proc", b"sys", b"run"} | above


def test_a_template_is_quiet(cloche: Runner, template: Path) -> None:
    """What a kernel does once after a boot was done before the template was saved: its clones need not."""
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    done = cloche("cat", clock, "/proc/uptime")
    assert done.stdout.split()[0] == b"tsc", done
    assert float(done.stdout.split()[1]) > 2


def test_what_was_looked_at_would_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a template in which a file of the host's was read has its name."""
    share_kernels(tmp_path, monkeypatch)

    def curious(*words: object, **named: object) -> tuple[Step, ...]:
        return (*build_first_steps(*words, **named), CopyTree(b"/usr/share/licenses", b"/tmp", 0, 0))  # type: ignore[arg-type]

    monkeypatch.setattr("cloche.drivers.qemu.template.build_first_steps", curious)
    name = make_template(request(), collect_facts())
    assert _remembered(tmp_path / "cloche" / "templates" / name) > {b"usr", b"share"}


@pytest.mark.parametrize(
    "words, why",
    [
        (("--cold",), "--cold was given"),
        (("-m", "256M"), "no template for it yet"),
        (("--boot-timeout", "60s"), "about a boot"),
        (("--boot-log",), "about a boot"),
    ],
)
def test_what_boots_says_why(cloche: Runner, template: Path, words: tuple[str, ...], why: str) -> None:
    """A machine that is not the template's boots by itself."""
    plan = cloche("run", "--dry-run", *words, "true").stdout.decode()
    assert why in next(line for line in plan.splitlines() if line.startswith("start "))
    assert cloche("run", *words, "true").returncode == 0


def test_everything_of_a_run_is_there(cloche: Runner, template: Path, folder: Path) -> None:
    """Shares, copies and disks come with the restore."""
    (folder / "shared").write_text("of the host\n")
    with open(folder / "image", "wb") as image:
        image.truncate(1 << 20)
    for path in folder.iterdir():
        os.chown(path, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    done = cloche(
        *("--share", f"{folder}:rw:at=/mnt", "-i", f"/tmp/copy={folder / 'shared'}"),
        *("--disk", f"data={folder / 'image'}", "--privileged", "--timings"),
        *("sh", "-c", "cat /mnt/shared /tmp/copy; echo new > /mnt/new; echo ab > /dev/disk/by-tag/data"),
    )
    assert (done.returncode, done.stdout) == (0, b"of the host\n" * 2), done.stderr
    assert b"memory filled" in done.stderr
    assert (folder / "new").read_text() == "new\n"
    assert (folder / "image").read_bytes().startswith(b"ab\n")


def test_the_first_run_makes_one_in_the_background(fresh: OwnCache) -> None:
    """The first run boots and leaves somebody to make a template; the second goes on from it."""
    with orphans():
        assert fresh("--timings", "true").returncode == 0
    assert fresh.begins().startswith("from the template")
    assert b"memory filled" in fresh("--timings", "true").stderr


def test_the_disk_of_a_profile_comes_into_a_drive(fresh: OwnCache) -> None:
    """A run with a profile takes the common template and has one with a drive made; disks of any size fit into that."""
    common = str(fresh.build())
    sizes = {"drive-small": 64 << 20, "drive-large": 3 << 30}
    plans = []
    try:
        for name, size in sizes.items():
            assert fresh("profile", "new", name, "--size", f"{size >> 20}M").returncode == 0
            plans.append(fresh("run", "--dry-run", "-p", name, "true").stdout.decode())
            with orphans():
                assert fresh("-p", name, "sh", "-c", f"echo {name} > ~/note").returncode == 0
        assert [f"from the template {common}\n" in plan for plan in plans] == [True, False]
        for name, size in sizes.items():
            done = fresh("-p", name, "--timings", "sh", "-c", "cat ~/note /sys/block/vda/size; ls -A /cloche")
            assert done.stdout.decode() == f"{name}\n{size // 512}\n"
            assert b"memory filled" in done.stderr
    finally:
        for name in sizes:
            fresh("profile", "delete", name)


def test_a_cold_run_makes_none(fresh: OwnCache) -> None:
    """Whoever asks for a boot gets no template made."""
    with orphans():
        assert fresh("--cold", "true").returncode == 0
    assert not fresh.templates.exists()


def _cut_info(template: Path) -> None:
    os.truncate(template / "info", 100)


def _lose_info(template: Path) -> None:
    (template / "info").unlink()


def _shorten_memory(template: Path) -> None:
    os.truncate(template / "memory", 1 << 20)


def _cut_state(template: Path) -> None:
    os.truncate(template / "state", 1000)


def _open_to_others(template: Path) -> None:
    template.chmod(0o777)


def _open_memory_to_others(template: Path) -> None:
    (template / "memory").chmod(0o666)


def _link_state(template: Path) -> None:
    (template / "state").rename(template / "elsewhere")
    (template / "state").symlink_to("elsewhere")


def _other_key(template: Path) -> None:
    text = (template / "info").read_bytes()
    (template / "info").write_bytes(text.replace(b"host ", b"host x", 1))


@pytest.mark.parametrize(
    "spoil",
    [
        _cut_info,
        _lose_info,
        _shorten_memory,
        _cut_state,
        _open_to_others,
        _open_memory_to_others,
        _link_state,
        _other_key,
    ],
    ids=lambda function: function.__name__,
)
def test_what_is_not_whole_or_not_ours_is_not_used(
    spoilt: tuple[OwnCache, Path], spoil: Callable[[Path], None]
) -> None:
    """A template that is half, or that others can write to, is none: the run boots and says nothing."""
    cloche, template = spoilt
    assert cloche.begins().startswith("from the template")
    spoil(template)
    assert cloche.begins() == "cold: there is no template for it yet"
    with orphans():
        assert cloche("true").returncode == 0


def test_a_directory_others_can_write_to_is_refused_with_a_notice(spoilt: tuple[OwnCache, Path]) -> None:
    """Nothing is taken from a directory in which somebody else could have put it."""
    cloche, _ = spoilt
    cloche.templates.chmod(0o777)
    with orphans():
        done = cloche("--timings", "true")
    assert done.returncode == 0
    assert b"is not yours alone, so no template is taken from there" in done.stderr
    assert b"memory filled" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to somebody else takes root")
@pytest.mark.parametrize("part", ["", "memory", "state"])
def test_anothers_template_is_not_used(spoilt: tuple[OwnCache, Path], part: str) -> None:
    """A template, or a part of one, that belongs to another user is none."""
    cloche, template = spoilt
    os.chown(template / part, 12345, 12345)
    template.chmod(0o755)
    assert cloche.begins() == "cold: there is no template for it yet"


def _flip_state(template: Path) -> None:
    data = bytearray((template / "state").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (template / "state").write_bytes(data)


def _lie_about_state(template: Path) -> None:
    """Damage the state and its checksum with it, so that QEMU has to notice."""
    import zlib

    data = bytes(8192)
    info = (template / "info").read_bytes()
    before, _, numbers = info.rpartition(b"end ")
    words = numbers.split()
    words[2:4] = [b"%d" % len(data), b"%d" % zlib.crc32(data)]
    (template / "state").write_bytes(data)
    (template / "info").write_bytes(before + b"end " + b" ".join(words) + b"\n")


def _wipe_memory(template: Path) -> None:
    size = (template / "memory").stat().st_size
    os.truncate(template / "memory", 0)
    os.truncate(template / "memory", size)


@pytest.mark.parametrize(
    "damage", [_flip_state, _lie_about_state, _wipe_memory], ids=lambda function: function.__name__
)
def test_a_damaged_template_costs_nobody_the_run(
    spoilt: tuple[OwnCache, Path], damage: Callable[[Path], None]
) -> None:
    """The machine is booted instead, with one line of notice, and the template is gone."""
    cloche, template = spoilt
    damage(template)
    # What lies about its checksum, too, is QEMU's to find out.
    assert cloche("template", "list", "--check").returncode == (0 if damage is _lie_about_state else 125)
    done = cloche("sh", "-c", "echo alive; exit 3")
    assert (done.returncode, done.stdout) == (3, b"alive\n"), done.stderr
    assert done.stderr.count(_REMOVED) == 1
    assert not template.exists()
    assert cloche("template", "list", "--check").returncode == 0


def test_two_who_make_one_at_once_make_one(fresh: OwnCache) -> None:
    """The second waits for the first, and finds what it wanted."""
    # What is found out once for a host (its counter's frequency) is known by then.
    assert fresh("--cold", "true").returncode == 0
    env = {"XDG_CACHE_HOME": str(fresh.base)}
    both = [
        fresh.user.popen([fresh.program, "template", "build"], env=env, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert [path.name for path in fresh.templates.iterdir() if path.is_dir()] == [said[0].decode().strip()]


def test_who_is_killed_while_making_one_leaves_nothing_to_be_used(fresh: OwnCache) -> None:
    """Half a template is never listed, and the next one who makes one removes it."""
    env = {"XDG_CACHE_HOME": str(fresh.base)}
    words = [fresh.program, "template", "build", "-v"]
    process = fresh.user.popen(words, env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    # From here on its machine boots, and the directory is there.
    while b"starting vmm" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert fresh("template", "list").stdout.startswith(b"There is no template yet")
    assert [path.name for path in fresh.templates.iterdir() if path.is_dir()] != []
    made = fresh.build()
    assert [path for path in fresh.templates.iterdir() if path.is_dir()] == [made]


def test_a_full_disk_leaves_nothing_and_costs_nobody_the_run(host: ChangedHost, fresh: OwnCache) -> None:
    """Making a template says what is missing; runs go on booting, and do not try again at once."""
    fresh.templates.mkdir(mode=0o700)
    os.chown(fresh.templates, fresh.user.entry.pw_uid, fresh.user.entry.pw_gid)
    env = {"XDG_CACHE_HOME": str(fresh.base)}
    full = host.on(*small_disk(fresh.templates, 4 << 20, filled=False))
    done = full("template", "build", env=env)
    assert done.returncode == 125
    assert b"cannot save the template: No space left on device" in done.stderr
    assert b"hint: " in done.stderr
    with orphans():
        assert full("true", env=env).returncode == 0


def test_a_template_can_be_removed_while_runs_go_on_from_it(spoilt: tuple[OwnCache, Path]) -> None:
    """Whoever has begun keeps what it has opened."""
    cloche, template = spoilt
    env = {"XDG_CACHE_HOME": str(cloche.base)}
    words = [cloche.program, "--no-tty", "cat"]
    running = cloche.user.popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    assert cloche("template", "remove", template.name).returncode == 0
    said, _ = running.communicate(b"still here", timeout=120)
    assert (running.returncode, said) == (0, b"still here")
    assert not template.exists()


def test_the_oldest_go_when_there_are_many(fresh: OwnCache) -> None:
    """A few templates are kept: those of the last kernels and machines."""
    for memory in ("128M", "144M", "160M", "176M", "192M", "224M"):
        assert fresh("template", "build", "-m", memory).returncode == 0
    listed = fresh("template", "list").stdout.decode()
    assert "128 MiB" not in listed
    assert [f"{memory} MiB" in listed for memory in (144, 160, 176, 192, 224)] == [True] * 5
    assert b"memory filled" in fresh("run", "-m", "192M", "--timings", "true").stderr


def test_a_run_on_a_terminal_survives_a_damaged_template(spoilt: tuple[OwnCache, Path]) -> None:
    """The machine that boots instead has the terminal, and a keeper of its mode, as the first would have had."""
    cloche, template = spoilt
    _lie_about_state(template)
    script = "test -t 0 && echo ready; read x; echo got $x"
    words = ["env", f"XDG_CACHE_HOME={cloche.base}", cloche.program, "sh", "-c", script]
    with TerminalProgram(cloche.user, words) as on:
        before = on.mode()
        assert _REMOVED in on.expect(b"ready")
        on.type(b"it\r")
        on.expect(b"got it")
        assert on.wait() == 0
        assert on.mode() == before


_API = """
import sys
import cloche
from cloche import log
log.set_sink("notice", lambda line: print(line, file=sys.stderr))
with cloche.Sandbox() as box:
    print(box.check_output(["echo", "alive"], text=True), end="")
"""


def test_a_sandbox_survives_a_damaged_template(spoilt: tuple[OwnCache, Path]) -> None:
    """The API goes on from templates, too, and boots where one is of no use."""
    cloche, template = spoilt
    for damage in (None, _flip_state, _lie_about_state):
        if damage is not None:
            damage(template)
        program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r})\n{_API}"
        env = {"XDG_CACHE_HOME": str(cloche.base)}
        done = cloche.user.run(["/usr/bin/python3", "-c", program], env=env)
        assert (done.returncode, done.stdout) == (0, b"alive\n"), done.stderr
        assert (_REMOVED in done.stderr) == (damage is not None), done.stderr
        assert template.exists() == (damage is None)
        template = cloche.build()
