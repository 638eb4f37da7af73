"""Reading --mount, the order in which things are mounted, and what the guest is asked to do for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.drivers.registry import find_driver
from cloche.errors import DiskError, MountError, ShareError, UsageError
from cloche.model.guest import (
    ANY_TYPE,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    CheckPlace,
    Mkdir,
    Mount,
    Step,
)
from cloche.model.request import Disk, GuestMount, Include, MountKind, Share
from cloche.plan.mounts import MountWord, parse_mount
from cloche.plan.places import check_places, order_places
from support.plans import ALICE, facts, plan, request, share

IMAGE, BIND, RAM = MountKind.HOST_IMAGE, MountKind.GUEST_BIND, MountKind.RAM
CLOSED = MS_NOSUID | MS_NODEV
DISK = Disk("mount.0", "/images/disk.img", writable=False)


def ram(target: str) -> GuestMount:
    """Return memory at a place."""
    return GuestMount(RAM, target, writable=True, size_bytes=1 << 20)


def image(target: str) -> GuestMount:
    """Return the file system of DISK at a place."""
    return GuestMount(IMAGE, target, DISK.tag)


def bind(source: str, target: str) -> GuestMount:
    """Return a directory of the guest at another place."""
    return GuestMount(BIND, target, source, writable=True)


def steps(*places: Share | GuestMount) -> tuple[Step, ...]:
    """Return what the guest does for these."""
    shares = tuple(place for place in places if isinstance(place, Share))
    mounts = tuple(place for place in places if isinstance(place, GuestMount))
    disks = (DISK,) if any(mount.kind == IMAGE for mount in mounts) else ()
    return plan(request(shares=shares, mounts=mounts, disks=disks)).setup


def mounted(made: tuple[Step, ...]) -> list[bytes]:
    """Return the places at which something is mounted, in order."""
    places = [step.target for step in made if isinstance(step, Mount) and not step.flags & MS_REMOUNT]
    return [place for place in places if not place.startswith((b"/cloche", b"/run/cloche"))]


@pytest.mark.parametrize(
    "word, expected",
    [
        ("host-bind:dir", MountWord("host-bind", "dir", None, False)),
        ("host-bind:a,b,rw,at=/c,d", MountWord("host-bind", "a,b,rw,at=/c,d", None, False)),
        ("host-bind:a,b,at=/c,rw", MountWord("host-bind", "a,b", "/c", True)),
        ("host-image:d.img,at=/d", MountWord(IMAGE, "d.img", "/d", False)),
        (
            "host-image:d,at=/d/../e,rw,format=qcow2,fs=ext4,part=3",
            MountWord(IMAGE, "d", "/e", True, "qcow2", "ext4", 3),
        ),
        ("host-image:rw,at=/d", MountWord(IMAGE, "rw", "/d", False)),
        ("guest-bind:/a/./b,at=/c", MountWord(BIND, "/a/b", "/c", True)),
        ("guest-bind:/a,at=/c,ro", MountWord(BIND, "/a", "/c", False)),
        ("ram:at=/c", MountWord(RAM, "", "/c", True)),
        ("ram:size=1M,at=/c", MountWord(RAM, "", "/c", True, size_bytes=1 << 20)),
        (
            "host-bind:two\nlines\udcff,at=/\udcfe",
            MountWord("host-bind", "two\nlines\udcff", "/\udcfe", False),
        ),
    ],
)
def test_words_of_mount(word: str, expected: MountWord) -> None:
    """Kind, source and options are told apart; options are taken from the right, each once."""
    read = parse_mount(word)
    assert read._replace(size_bytes=expected.size_bytes or read.size_bytes) == expected._replace(
        size_bytes=expected.size_bytes or 64 << 20
    )


@pytest.mark.parametrize(
    "word",
    [
        *(
            "",
            "dir",
            "nfs:x,at=/d",
            "host-bind:",
            "host-image:d",
            "host-image:,at=/d",
            "guest-bind:/a",
            "ram:",
        ),
        *("ram:size=1M", "ram:at=/d,size=0", "ram:at=/d,size=x", "ram:at=/d,rw", "ram:/d", "ram:at=d"),
        *("host-image:d,at=d", "host-image:d,at=/../d", "host-image:d,at=/d,format=vhd"),
        *("host-image:d,at=/d,part=0", "host-image:d,at=/d,part=1x", "host-image:d,at=/d,part=129"),
        *(
            "host-image:d,at=/d,part=",
            "host-image:d,at=/d,fs=",
            "host-image:d,at=/d,fs=a b",
            "host-image:d,at=/d,fs=auto",
        ),
        *("guest-bind:a,at=/d", "guest-bind:/a,at=", "host-bind:a\0b", "host-image:d,at=/d,ro,rw,x"),
    ],
)
def test_words_that_mount_nothing(word: str) -> None:
    """What is missing, unknown or impossible is a usage error."""
    with pytest.raises(UsageError):
        parse_mount(word)


@given(st.text(), st.sampled_from(["host-bind:", "host-image:", "guest-bind:", "ram:", ""]))
def test_whatever_is_written_is_read_or_refused(word: str, kind: str) -> None:
    """No word crashes the parser, and what is read has a place that is absolute."""
    try:
        read = parse_mount(kind + word)
    except UsageError:
        return
    assert (read.target or "/").startswith("/")
    assert bool(read.source) == (read.kind != RAM)


def test_an_image_is_mounted_by_the_guest() -> None:
    """Its disk is the machine's; the guest finds the type, and programs in it make nobody root."""
    mount = GuestMount(IMAGE, "/data", DISK.tag, part=2)
    made = plan(request(mounts=(mount,), disks=(Disk("own", "/own"), DISK))).setup
    found = next(step for step in made if isinstance(step, Mount) and step.target == b"/data")
    assert found == Mount(ANY_TYPE, b"/dev/vdb2", b"/data", CLOSED | MS_RDONLY, b"uid=1000,gid=1000")
    made = plan(request(mounts=(mount._replace(fs="ext4", writable=True, part=0),), disks=(DISK,))).setup
    found = next(step for step in made if isinstance(step, Mount) and step.target == b"/data")
    assert found == Mount(b"ext4", b"/dev/vda", b"/data", CLOSED)


def test_memory_belongs_to_who_runs_the_program() -> None:
    """It is limited, and the caller's, or root's with --privileged."""
    made = plan(request(mounts=(ram("/scratch"),))).setup
    assert Mount(b"tmpfs", b"ram", b"/scratch", CLOSED, b"mode=0755,size=1048576,uid=1000,gid=1000") in made
    made = plan(request(mounts=(ram("/scratch"),), privileged=True)).setup
    assert Mount(b"tmpfs", b"ram", b"/scratch", CLOSED, b"mode=0755,size=1048576,uid=0,gid=0") in made


def test_a_directory_of_the_guest_can_be_shown_read_only() -> None:
    """It is bound, and then made so."""
    made = steps(bind("/usr/share", "/s")._replace(writable=False))
    at = [step for step in made if isinstance(step, Mount) and step.target == b"/s"]
    assert [step.flags & (MS_BIND | MS_REMOUNT | MS_RDONLY) for step in at] == [
        MS_BIND,
        MS_BIND | MS_REMOUNT | MS_RDONLY,
    ]


def test_what_lies_in_another_comes_after_it() -> None:
    """Whatever the order in which they were given."""
    places = (ram("/a/b/c"), share("/host", "/a/b"), image("/a"), bind("/a/b/c/x", "/0"), ram("/0/y"))
    for given_order in (places, places[::-1]):
        assert mounted(steps(*given_order)) == [b"/a", b"/a/b", b"/a/b/c", b"/0", b"/0/y"]


def test_a_directory_of_the_guest_is_shown_with_all_that_lies_in_it() -> None:
    """A bind comes after what is mounted in its source, and binds of binds in their order."""
    assert mounted(steps(bind("/z", "/y"), bind("/y", "/x"), ram("/z/in"))) == [b"/z/in", b"/y", b"/x"]


@pytest.mark.parametrize(
    "places, words",
    [
        ((bind("/a", "/b"), bind("/b", "/a")), "need each other"),
        ((bind("/a/x", "/b"), bind("/b/y", "/a")), "need each other"),
        ((bind("/a", "/b"), bind("/b", "/c"), bind("/c", "/a")), "need each other"),
        ((bind("/a", "/a/b"),), "lie one in the other"),
        ((bind("/a/b", "/a"),), "lie one in the other"),
        ((bind("/a", "/a"),), "lie one in the other"),
        ((ram("/a"), image("/a")), "two mounts are at /a"),
        ((ram("/"),), "nothing of the guest would be left"),
        ((ram("/proc/x"),), "the guest fills /proc"),
        ((image("/run/cloche"),), "the guest fills /run"),
        ((bind("/tmp", "/dev"),), "the guest fills /dev"),
        ((image("/usr"),), "the guest's own"),
        ((ram("/lib64"),), "the guest's own"),
        (tuple(ram(f"/m{number}") for number in range(65)), "more than a domain's 64"),
    ],
)
def test_places_that_make_no_sense(places: tuple[GuestMount, ...], words: str) -> None:
    """Circles, what lies in itself, places of the guest's own, and too much of it are refused when planning."""
    with pytest.raises((MountError, ShareError), match=words):
        check_places((), (), places)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/a", "/b", "/a/x", "/b/x", "/a/x/y"]), st.sampled_from(["/a", "/b", "/c/x"])
        ),
        max_size=5,
        unique_by=lambda pair: pair[0],
    )
)
def test_an_order_is_one_or_there_is_none(pairs: list[tuple[str, str]]) -> None:
    """Whatever is bound where: each of them is there once, behind all that it lies in, or the whole is refused."""
    mounts = [bind(source, target) for target, source in pairs]
    try:
        ordered = order_places((), mounts)
    except MountError:
        return
    assert sorted(ordered) == sorted(mounts)
    for index, one in enumerate(ordered):
        assert not any(one.target.startswith(later.target + "/") for later in ordered[index:])


def test_two_at_one_place_and_copies_under_a_mount_are_refused() -> None:
    """Neither would be seen."""
    with pytest.raises(MountError, match="two mounts are at /data"):
        check_places((share("/data"),), (), (ram("/data"),))
    with pytest.raises(ShareError, match="the mount at /data would hide it"):
        check_places((), (Include("/file", "/data/file"),), (ram("/data"),))


def test_places_are_made_only_in_what_is_the_guests_own() -> None:
    """In a share or an image a directory must be there, and is looked for without following links."""
    made = steps(ram("/host/in"), share("/host"), ram("/home/alice/m"), ram("/home/alice/m/n"))
    assert CheckPlace(b"/host", b"in") in made
    assert Mkdir(b"/home/alice/m", 0o755, ALICE.uid, ALICE.gid) in made
    assert Mkdir(b"/home/alice/m/n", 0o755, ALICE.uid, ALICE.gid) in made
    assert Mkdir(b"/host/in") not in made
    made = steps(image("/i"), share("/data", "/i/a/b"))
    assert CheckPlace(b"/i", b"a/b") in made


def test_what_other_arrangements_and_drivers_do() -> None:
    """Bwrap refuses what a guest's kernel has to mount; a machine has no more images than places for disks."""
    with pytest.raises(UsageError, match="cannot do --mount but host-bind"):
        find_driver("bwrap").plan(request(mounts=(ram("/a"),)), facts(), None)
    images = tuple(Disk(f"mount.{number}", f"/{number}", writable=False) for number in range(7))
    with pytest.raises(DiskError, match="room for 6 disks, not for 7"):
        plan(request(disks=images))
