"""Reading ``--disk``, and what a plan with disks holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.drivers.registry import find_driver
from cloche.errors import DiskError, UsageError
from cloche.model.guest import MakeSymlink, WaitPath
from cloche.model.jail import Bind
from cloche.model.plan import EndpointKind, LaunchPlan, OpenFile
from cloche.model.request import Disk
from cloche.plan.disks import MAX_TAG, QCOW2_HEAD, bound_growth, parse_disk
from support.disks import empty_qcow2
from support.plans import KERNEL, facts, request

HOME = Disk("home", "/disks/home.img")
DATA = Disk("data", "/disks/data.img", writable=False)


def plan(*disks: Disk) -> LaunchPlan:
    """Return the plan of a machine with these disks."""
    return find_driver("qemu").plan(request(disks=disks), facts(), KERNEL)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("home=a.img", ("home", "a.img", "raw", True)),
        ("home=a.img,ro", ("home", "a.img", "raw", False)),
        ("h.o-m_e=a,b=c.img,format=raw,ro", ("h.o-m_e", "a,b=c.img", "raw", False)),
        ("h=a.img,ro,format=qcow2", ("h", "a.img", "qcow2", False)),
        ("h=a.img,ro,ro", ("h", "a.img,ro", "raw", False)),
    ],
)
def test_a_disk_is_read(word: str, expected: tuple[str, str, str, bool]) -> None:
    """Tag, file and options are told apart; the options are taken from the right."""
    assert parse_disk(word)[:4] == expected


def test_an_empty_disk_has_a_size() -> None:
    """Instead of a file a size can stand, in bytes or with a unit; a file of that name needs a directory before it."""
    assert parse_disk("scratch=size:10G") == ("scratch", "", "raw", True, 10 << 30)
    assert parse_disk("scratch=size:4096").size_bytes == 4096
    assert parse_disk("scratch=./size:10G").path == "./size:10G"


@pytest.mark.parametrize(
    "word",
    [
        *(
            "home",
            "=a.img",
            "home=",
            "home=,ro",
            "a b=x",
            "..=x",
            "h=x,format=vhd",
            "h=a\0b",
            "x" * 21 + "=a",
        ),
        *("mount.0=a", "a=size:", "a=size:0", "a=size:-1", "a=size:1X", "a=size:9999999T"),
        *("a=size:1G,ro", "a=size:1G,format=raw"),
    ],
)
def test_what_is_malformed_is_refused(word: str) -> None:
    """A word that names no disk is a usage error that says what was wrong."""
    with pytest.raises(UsageError, match="--disk"):
        parse_disk(word)


@given(st.text())
def test_whatever_is_written_is_read_or_refused(word: str) -> None:
    """No word crashes the parser, and a tag that is accepted is a plain name."""
    try:
        disk = parse_disk(word)
    except UsageError:
        return
    assert 0 < len(disk.tag) <= MAX_TAG
    assert disk.tag.isascii()
    assert "/" not in disk.tag
    assert bool(disk.path) != bool(disk.size_bytes)


def test_each_disk_is_a_process_with_one_nameless_file() -> None:
    """A disk's process has an empty root, its socket and its open file, and is started again when it dies."""
    made = plan(HOME, DATA)
    home, data = (next(p for p in made.processes if p.name == name) for name in ("disk-home", "disk-data"))
    assert home.files == (OpenFile("/disks/home.img", True, 4),)
    assert data.files == (OpenFile("/disks/data.img", False, 4),)
    assert home.jail.root == data.jail.root == ()
    assert home.jail.keep_caps == 0
    assert home.restarts
    assert b"--readonly" in data.argv
    assert b"--readonly" not in home.argv
    assert {e.name: e.kind for e in made.endpoints}["disk1"] == EndpointKind.LISTEN


@pytest.mark.parametrize(
    "most, limits",
    [(1 << 30, [(1, 1 << 30, 1 << 30)]), (512, [(1, 32768, 32768)]), (None, [])],
    ids=["file", "smaller-than-the-notes", "block-device"],
)
def test_a_disk_cannot_grow(most: int | None, limits: list[tuple[int, int, int]]) -> None:
    """No file that a disk's process has may become larger than its image has to be; block devices cannot grow."""
    process = next(p for p in plan(HOME._replace(most_bytes=most)).processes if p.name == "disk-home")
    assert [limit for limit in process.jail.rlimits if limit[0] == 1] == limits


def test_what_an_image_may_grow_to() -> None:
    """A raw image stays as it is; a qcow2 image gets room for its disk and tables; what is no image gets none."""
    assert bound_growth("raw", 1000, b"QFI\xfb".ljust(QCOW2_HEAD, b"\xff")) == 1000
    head = empty_qcow2(64 << 20)[:QCOW2_HEAD]
    assert bound_growth("qcow2", 1000, head) == 1000 + (64 << 20) + (8 << 20) + (32 << 20)
    assert bound_growth("qcow2", 1000, head[:-1]) == 1000
    assert bound_growth("qcow2", 1000, b"x" + head[1:]) == 1000
    # As much as the header can say.
    assert bound_growth("qcow2", 1000, head[:24] + b"\xff" * 8) == (1 << 63) - 1


@given(st.sampled_from(["raw", "qcow2"]), st.integers(0, 2**62), st.booleans(), st.binary(max_size=40))
def test_no_head_makes_the_bound_less_than_the_file(
    kind: str, size: int, is_image: bool, noise: bytes
) -> None:
    """Whatever an image's first bytes say, its file may stay as large as it is, and the bound is one the kernel has."""
    head = (b"QFI\xfb" if is_image else b"") + noise
    assert size <= bound_growth(kind, size, head) < 2**63


def test_qemu_finds_each_disk_by_a_path_of_its_jail() -> None:
    """QEMU can connect again because the sockets, and nothing else of the run directory, are in its jail."""
    vmm = next(p for p in plan(HOME, DATA).processes if p.name == "vmm")
    words = b" ".join(vmm.argv).decode()
    assert "path=/run/devices/disk0,reconnect-ms=" in words
    assert "vhost-user-blk,bus=virtio-mmio-bus.4,chardev=disk1" in words
    sources = [op.source for op in vmm.jail.root if isinstance(op, Bind) and b"run-dir" in op.source]
    assert sources == [b"/run-directory/disk0.sock", b"/run-directory/disk1.sock"]


def test_an_old_qemu_counts_in_seconds() -> None:
    """QEMU 7.2 knows no milliseconds between two attempts to connect."""
    host = facts()
    host = host._replace(tools=host.tools._replace(qemu_version=(7, 2)))
    made = find_driver("qemu").plan(request(disks=(HOME,)), host, KERNEL)
    assert "reconnect=1" in b" ".join(made.processes[0].argv).decode()


def test_the_guest_names_its_disks_by_their_tags() -> None:
    """The steps wait for each disk and link its tag to it, in the order of the transports."""
    steps = plan(HOME, DATA).setup
    assert [step.path for step in steps if isinstance(step, WaitPath)] == [b"/dev/vda", b"/dev/vdb"]
    assert [(s.target, s.path) for s in steps if isinstance(s, MakeSymlink)] == [
        (b"../../vda", b"/dev/disk/by-tag/home"),
        (b"../../vdb", b"/dev/disk/by-tag/data"),
    ]


def test_every_transport_in_use_is_named_to_the_kernel() -> None:
    """With six disks all eight transports of microvm are named, each once, and the clock's neighbour last."""
    disks = tuple(Disk(f"d{index}", f"/d{index}") for index in range(6))
    vmm = plan(*disks).processes[0]
    line = vmm.argv[vmm.argv.index(b"-append") + 1].decode()
    slots = [word.rpartition(":")[2] for word in line.split() if word.startswith("virtio_mmio.device=")]
    assert slots == ["12", "11", "10", "9", "7", "6", "5", "8"]


def test_two_of_one_name_and_one_too_many_are_refused() -> None:
    """What a machine cannot have is refused when it is planned."""
    with pytest.raises(DiskError, match="two disks are called home"):
        plan(HOME, HOME._replace(path="/other"))
    with pytest.raises(DiskError, match="room for 6 disks, not for 7"):
        plan(*(Disk(f"d{index}", f"/d{index}") for index in range(7)))


def test_one_file_is_two_disks_only_when_both_are_read() -> None:
    """The error names the two tags, and does not speak of another domain."""
    again = HOME._replace(tag="again")
    with pytest.raises(DiskError, match="the disks home and again are the same file "):
        plan(HOME, again._replace(writable=False))
    assert plan(HOME._replace(writable=False), again._replace(writable=False))


def test_the_bwrap_driver_has_no_disks() -> None:
    """A driver without machines refuses disks instead of leaving them out."""
    with pytest.raises(UsageError, match="cannot do --disk"):
        find_driver("bwrap").plan(request(disks=(HOME,)), facts(), None)
