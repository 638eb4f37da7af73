"""An image made by an enemy: links where something is to be mounted, programs that make root, devices."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import cloche
from cloche.errors import MountError
from cloche.model.guest import Mkdir
from cloche.plan import mounts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return the image of a tree with a link out of it, a set-user-id program and what would be a disk."""
    script = f"""mkdir -p {tmp_path}/tree {tmp_path}/shared; cd {tmp_path}; echo mine > shared/mine; ln -s /etc tree/out
    cp /usr/bin/id tree/id
    mksquashfs tree image -quiet -no-progress -all-root -p 'disk b 666 0 0 254 0' -p 'id m 4755 0 0'"""
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True)
    return tmp_path / "image"


def sandbox(image: Path) -> cloche.Sandbox:
    """Return a machine with the image, and with a share where the image has a link."""
    shared = f"{image.parent}/shared:rw:at=/m/out"
    return cloche.Sandbox(mount=[f"host-image:{image},at=/m"], share=[shared])


def test_no_link_of_an_image_moves_a_mount(image: Path) -> None:
    """The machine does not start: a share that the guest may write to is never at a place that an image has chosen."""
    with pytest.raises(MountError, match="a symbolic link of what is at /m leads elsewhere"):
        sandbox(image).start()


def test_without_the_look_the_link_is_followed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: where nobody looks, the share is at /etc."""
    monkeypatch.setattr(mounts, "outer_place", lambda target, places: None)
    monkeypatch.setattr(mounts, "make_directory", lambda path, user: [Mkdir(path.encode())])
    with sandbox(image) as box:
        assert box.run(["cat", "/etc/mine"], capture_output=True, text=True).stdout == "mine\n"


def test_nothing_of_an_image_is_a_device_or_makes_root(image: Path) -> None:
    """Whoever made it: its device files open nothing, and its set-user-id programs run as who starts them."""
    script = "/m/id -u; head -c 1 /m/disk 2>&1 | grep -o 'Permission denied'; grep -c ' /m .*nosuid,nodev' /proc/mounts"
    with cloche.Sandbox(mount=[f"host-image:{image},at=/m"]) as box:
        said = box.run(["sh", "-c", script], capture_output=True, text=True, user="nobody").stdout
    assert said == "65534\nPermission denied\n1\n"


def test_the_twin_with_the_flags_left_out(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: mounted as it is, the program is root and the device is the disk."""
    monkeypatch.setattr(mounts, "_CLOSED", 0)
    script = "/m/id -u; head -c 4 /m/disk"
    with cloche.Sandbox(mount=[f"host-image:{image},at=/m"]) as box:
        said = box.run(["sh", "-c", script], capture_output=True, user="nobody").stdout
    assert said == b"0\nhsqs"
