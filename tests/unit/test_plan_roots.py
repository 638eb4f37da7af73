"""Plans of machines whose system tree is not the host's."""

from __future__ import annotations

import pytest

from cloche.drivers.registry import find_driver
from cloche.errors import UsageError
from cloche.model.guest import MS_NODEV, MS_RDONLY, Mount, PutFirst, WriteFile
from cloche.model.jail import Bind
from cloche.model.machine import Devices
from cloche.model.request import Disk, Layer, Root, RootKind
from cloche.plan.guest import shown_trees
from support.plans import ALICE, KERNEL, ROOT, facts, plan, process, request

TREE = Root(RootKind.DIRECTORY, "/srv/tree", "0" * 32, "/bin/zsh")
DISK = Disk("mount.root", "/srv/image", writable=False)
IMAGE = Root(RootKind.IMAGE, DISK.tag, "0" * 32, fs="ext4", part=2)


def test_a_directory_is_served_whole_and_read_only() -> None:
    """Nothing of the host's own tree is in the stage."""
    made = plan(request(root=TREE))
    binds = [op for op in process(made, "fs-system").jail.root if isinstance(op, Bind)]
    assert [(op.source, op.path) for op in binds] == [(b"/srv/tree", b"/stage")]
    assert binds[0].flags & 1
    assert made.template is None


def test_an_image_needs_no_file_server() -> None:
    """The guest mounts it in the place of the host's tree; shares have their server all the same."""
    made = plan(request(root=IMAGE, disks=(DISK,), share_later=True))
    assert [one.name for one in made.processes] == ["vmm", "fs-shares", "disk-mount.root"]
    found = [step for step in made.setup if isinstance(step, Mount)]
    assert found[0] == Mount(b"ext4", b"/dev/vda2", b"/cloche/system", MS_RDONLY | MS_NODEV)
    assert next(step for step in found if step.fstype == b"overlay").flags == MS_NODEV


def test_the_caller_is_put_before_the_users_of_the_tree() -> None:
    """Root is known to every tree; others get a line, with a shell that is there, and the guest's own names."""
    steps = plan(request(root=TREE)).setup
    first = {step.path: step.content for step in steps if isinstance(step, PutFirst)}
    assert first[b"/etc/passwd"] == b"alice:x:1000:1000:Alice:/home/alice:/bin/zsh\n"
    assert first[b"/etc/group"] == b"alice:x:1000:\n"
    assert {step.path for step in steps if isinstance(step, WriteFile)} >= {
        b"/etc/hosts",
        b"/etc/resolv.conf",
    }
    assert b"SHELL=/bin/zsh" in plan(request(root=TREE)).command.env
    assert not [step for step in plan(request(root=TREE), facts(ROOT)).setup if isinstance(step, PutFirst)]


def test_nothing_is_looked_up_on_the_host_for_it() -> None:
    """Neither programs nor the working directory are where the host has them."""
    assert shown_trees(request(root=TREE)) == ()
    assert plan(request(root=TREE), facts(cwd="/usr/share")).command.cwd == ALICE.home.encode()


def test_what_cannot_have_a_root() -> None:
    """A profile belongs to the host's tree, bwrap has no layer to write to, and QEMU's own trees are the host's."""
    with pytest.raises(UsageError, match="a profile keeps changes to the host's tree"):
        plan(request(root=TREE, layer=Layer("work", "/image")))
    with pytest.raises(UsageError, match="cannot do --root"):
        find_driver("bwrap").plan(request(root=TREE), facts(), None)
    with pytest.raises(UsageError, match="--devices=vmm cannot have --root with an image"):
        plan(request(root=IMAGE, disks=(DISK,), devices=Devices.VMM))
    assert "another one" in find_driver("qemu").why_cold(request(root=TREE), facts(), KERNEL)
