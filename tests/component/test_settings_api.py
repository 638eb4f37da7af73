"""Files of settings and the Python API: not read unless that is asked for, and below what the call says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import cloche
from cloche.api.request import sandbox_request
from cloche.errors import ProfileError, SettingsError, UsageError
from cloche.host import profiles
from cloche.model.machine import Devices
from cloche.model.request import NetworkKind

if TYPE_CHECKING:
    from pathlib import Path

SAID = """
memory = "256M"
cpus = 2
hwrng = true
privileged = true
env = ["A=1"]
workdir = "/opt"
net = "user"
timeout = "5s"
detach = true
name = "web"
default_profile = "gone"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the user's settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))
    path = tmp_path / "cloche/cloche.toml"
    path.parent.mkdir(mode=0o700)
    path.write_text(SAID)
    path.chmod(0o600)
    return path


def test_a_call_means_the_same_for_everybody(file: Path) -> None:
    """What the user has set for the command line, right or wrong, does not change what a program does."""
    plain = cloche.Sandbox().request
    assert (plain.memory_mib, plain.cpus, plain.env, plain.network, plain.workdir) == (
        None,
        None,
        (),
        None,
        None,
    )
    assert (plain.driver, plain.devices, plain.hwrng, plain.argv) == (
        "qemu",
        Devices.PROCESS,
        False,
        (b"true",),
    )
    file.write_text("xxx")
    assert cloche.Sandbox().request == plain


def test_files_are_read_when_that_is_asked_for(file: Path) -> None:
    """With settings=True the machine is as files say; what is about a run of the command line is left out."""
    request = cloche.Sandbox(settings=True).request
    assert (request.memory_mib, request.cpus, request.hwrng, request.privileged) == (256, 2, True, True)
    assert (request.env, request.workdir) == (((b"A", b"1"),), "/opt")
    assert request.network is not None
    assert request.network.kind == NetworkKind.USER
    assert (request.timeout_s, request.name, request.layer) == (None, "", None)
    file.write_text("cpus = 0")
    with pytest.raises(SettingsError, match=f"^{file}:1:1: cpus: "):
        cloche.Sandbox(settings=True)


def test_a_call_is_stronger_than_files(file: Path) -> None:
    """Arguments take the place of what files say, also to turn it off; lists are added to."""
    file.write_text(SAID + f'share = ["{file.parent}", "/usr/share"]\n')
    request = cloche.Sandbox(
        settings=True, memory_mib=512, hwrng=False, net="none", share=["/usr/share:rw", "/usr/lib:at=/x"]
    ).request
    assert (request.memory_mib, request.cpus, request.hwrng, request.network) == (512, 2, False, None)
    assert [(share.target, share.writable) for share in request.shares] == [
        (str(file.parent), False),
        ("/usr/share", True),
        ("/x", False),
    ]


def test_a_profile_that_is_named_has_its_own_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming a profile is asking for what it says, and not for what its user has set besides."""
    monkeypatch.setenv("XDG_DATA_HOME", str(file.parent / "data"))
    profiles.new("job")
    assert sandbox_request({"profile": "job"}, settings=False).memory_mib is None
    own = file.parent / "data/cloche/profiles/job/cloche.toml"
    own.write_text('memory = "768M"\ncommand = "x"\nlabel = "Job"\nenv = ["B=1"]\n')
    own.chmod(0o600)
    request = sandbox_request({"profile": "job", "cpus": 3}, settings=False)
    assert (request.memory_mib, request.cpus, request.env) == (768, 3, ((b"B", b"1"),))
    assert request.argv == (b"true",)
    assert request.layer is not None
    assert request.layer.name == "job"
    both = sandbox_request({"profile": "job"}, settings=True)
    assert (both.memory_mib, both.cpus, both.env) == (768, 2, ((b"A", b"1"), (b"B", b"1")))
    with pytest.raises(ProfileError, match="you have no profile jog"):
        sandbox_request({"profile": "jog"}, settings=False)
    # Of a name that came out empty: without the profile, what is changed would be lost.
    with pytest.raises(UsageError, match="cannot be a profile's name"):
        sandbox_request({"profile": ""}, settings=False)


def test_a_root_is_said_as_on_the_command_line(tmp_path: Path) -> None:
    """Another system tree is a word like --root's, and what is none is refused."""
    with pytest.raises(cloche.ClocheError, match="none"):
        cloche.Sandbox(root=str(tmp_path / "none"))


def test_a_list_is_no_word() -> None:
    """A string where a list belongs is refused, and not taken letter by letter."""
    with pytest.raises(UsageError, match="share takes a list"):
        cloche.Sandbox(share="/usr")
