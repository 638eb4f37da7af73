"""What QEMU allows each device, tried: to be added at a restore, and to be saved in the middle of its work.

The table that plans believe (``cloche.drivers.qemu.abilities``) is compared with what happens; a wrong entry fails.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.drivers.qemu.abilities import ABILITIES, TRIED, ability
from cloche.host.tools import qemu_version
from setuplib import cargo, rust
from support.guestwork import compile_program
from support.trial import Toolbox, make_template, prepare, save_and_load, try_device, try_moving_memory
from support.tried import DEVICES, OwnDisk, SharedFiles
from support.vmm import Qemu, QemuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INSTALLED = "/usr/bin/qemu-system-x86_64"
ONLY_DEBIAN_12 = pytest.mark.skipif(
    platform.freedesktop_os_release().get("VERSION_ID") != "12", reason="only Debian 12 has QEMU 7.2"
)


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """Provide a directory in memory: for the memory of guests."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="cloche-trial."))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def toolbox(room: Path, request: pytest.FixtureRequest) -> Callable[[str], Toolbox]:
    """Return a function that provides what a trial with a QEMU needs: the ``installed`` one or the ``oldest``."""
    program = compile_program(room / "guestio")
    made: dict[str, Toolbox] = {}

    def provide(which: str) -> Toolbox:
        if which not in made:
            qemu = _installed() if which == "installed" else _oldest(request.getfixturevalue("qemu_7_2"))
            place = room / which
            place.mkdir()
            made[which] = Toolbox(qemu, make_template(qemu, place), program, place)
        tools = made[which]
        return tools._replace(room=Path(tempfile.mkdtemp(dir=tools.room)))

    return provide


def _installed() -> Qemu:
    return Qemu(qemu_version(INSTALLED), (INSTALLED,), {})


def _oldest(files: Path) -> Qemu:
    words = (str(files / "bin" / "qemu-system-x86_64"), "-L", str(files / "share" / "qemu"))
    return Qemu((7, 2), words, {"QEMU_MODULE_DIR": str(files / "lib" / "x86_64-linux-gnu" / "qemu")})


@pytest.fixture(scope="module")
def disk_without_log(room: Path) -> str:
    """Return a build of the disk that does not log what it writes for the guest."""
    project = Path(__file__).resolve().parents[2]
    found = cargo.find()
    assert found is not None, "there is no cargo; `make setup` installs one"
    target = project / "target" / "mutants"
    subprocess.run(
        [
            *(
                found.path,
                "build",
                "--locked",
                "--quiet",
                "--package",
                "cloche-disk",
                "--target",
                rust.TARGET,
            ),
            # A build for debugging checks descriptors with calls that the disk's own filter does not allow.
            *("--release", "--features", "cloche-disk/mutant-no-log", "--target-dir", str(target)),
        ],
        cwd=project,
        env={**os.environ, **cargo.environment(found), "RUSTFLAGS": rust.flags()},
        check=True,
    )
    return shutil.copy(target / rust.TARGET / "release" / "cloche-disk", str(room / "cloche-disk"))


def compare(name: str, tools: Toolbox) -> None:
    """Try a device and compare what came of it with the table."""
    device = DEVICES[name]()
    outcome = try_device(device, tools)
    expected = ability(device.kind, tools.qemu.version)
    for found, entry in zip(outcome, expected, strict=True):
        assert bool(found) == bool(entry), (name, outcome)
        assert entry in found, (name, outcome)


def test_a_disk_is_added_at_a_restore_and_saved_while_it_is_used(toolbox: Callable[[str], Toolbox]) -> None:
    """The quickest of the trials below, with the QEMU that is installed."""
    compare("blk-raw", toolbox("installed"))


@pytest.mark.long
@pytest.mark.parametrize("name", DEVICES)
def test_the_installed_qemu(toolbox: Callable[[str], Toolbox], name: str) -> None:
    """Every device can what the table says, with the QEMU that is installed, and nothing more."""
    tools = toolbox("installed")
    assert tools.qemu.version >= TRIED[-1]
    compare(name, tools)


@pytest.mark.long
@ONLY_DEBIAN_12
@pytest.mark.parametrize("name", DEVICES)
def test_the_oldest_qemu(toolbox: Callable[[str], Toolbox], name: str) -> None:
    """Every device can what the table says, with the oldest QEMU there may be, and nothing more."""
    compare(name, toolbox("oldest"))


def test_every_entry_was_tried() -> None:
    """No kind of device is in the table that no trial knows."""
    assert {make().kind for make in DEVICES.values()} == ABILITIES.keys()


# The log of written pages


@pytest.mark.parametrize(
    "which",
    [pytest.param("installed"), pytest.param("oldest", marks=[pytest.mark.long, ONLY_DEBIAN_12])],
)
def test_what_the_disk_writes_while_memory_is_copied(toolbox: Callable[[str], Toolbox], which: str) -> None:
    """Memory is copied while the guest goes on: what its disk writes into memory meanwhile is not lost."""
    assert try_moving_memory(OwnDisk(), toolbox(which), with_memory=True) == ""


@pytest.mark.long
@pytest.mark.parametrize("which", ["installed", pytest.param("oldest", marks=ONLY_DEBIAN_12)])
def test_without_the_log_data_are_lost(
    toolbox: Callable[[str], Toolbox], disk_without_log: str, which: str
) -> None:
    """The same with a disk that does not log: the guest finds old data in its memory."""
    mutant = OwnDisk(program=disk_without_log)
    wrong = try_moving_memory(mutant, toolbox(which), with_memory=True, loading=OwnDisk())
    assert wrong.startswith("stale pages: ")


@pytest.mark.long
@pytest.mark.parametrize("which", ["installed", pytest.param("oldest", marks=ONLY_DEBIAN_12)])
def test_shared_memory_needs_no_log(
    toolbox: Callable[[str], Toolbox], disk_without_log: str, which: str
) -> None:
    """Memory in a file that both machines use is not copied: even a disk that does not log loses nothing."""
    mutant = OwnDisk(program=disk_without_log)
    assert try_moving_memory(mutant, toolbox(which), with_memory=False, loading=OwnDisk()) == ""


# The state of a file server


@pytest.mark.parametrize("cache", ["forever", "coherent"])
def test_a_file_that_is_gone_at_a_restore_is_named(toolbox: Callable[[str], Toolbox], cache: str) -> None:
    """A file the guest knows that is not there any more fails the restore, and the server says which one."""
    tools = toolbox("installed")
    device = SharedFiles(cache)
    scratch = prepare(device, tools)
    with pytest.raises(QemuError, match="load of migration failed"):
        save_and_load(device, tools, scratch, meanwhile=(scratch / "root" / "old").unlink)
    said = (scratch / "said").read_text()
    assert "state cannot be moved: " in said
    assert "/old" in said
    assert "No such file or directory" in said
