"""Looking at system trees on the host, before anything is started."""

from __future__ import annotations

import pytest

from cloche.errors import ShareError, UsageError
from cloche.host.roots import refuse_mounts
from cloche.plan.roots import RootWord, parse_root

LINE = b"36 35 98:0 /mnt1 %s rw,noatime master:1 - %s /dev/root rw,errors=continue\n"


def test_a_tree_with_the_hosts_kernel_in_it_is_refused() -> None:
    """A proc mounted in it would show the host's processes; a disk, or the host's own /proc, does not count."""
    refuse_mounts("/srv/tree", LINE % (b"/proc", b"proc") + LINE % (b"/srv/tree/data", b"ext4"))
    refuse_mounts("/srv/tree", LINE % (b"/srv/tree2/proc", b"proc"))
    with pytest.raises(ShareError, match="the host has its own proc at /srv/tree/proc"):
        refuse_mounts("/srv/tree", LINE % (b"/srv/tree/proc", b"proc"))
    with pytest.raises(ShareError, match="/srv/a tree/sys"):
        refuse_mounts("/srv/a tree", LINE % (b"/srv/a\\040tree/sys", b"sysfs"))


@pytest.mark.parametrize(
    "word, expected",
    [
        ("dir", RootWord("dir")),
        ("a,b", RootWord("a,b")),
        ("a,b.img,part=2,fs=ext4", RootWord("a,b.img", "", "ext4", 2)),
        ("a,format=qcow2", RootWord("a", "qcow2")),
        ("a,fs=x,fs=y", RootWord("a,fs=x", "", "y")),
    ],
)
def test_words_of_root(word: str, expected: RootWord) -> None:
    """Options are taken from the right, each once; the rest is the name."""
    assert parse_root(word) == expected


@pytest.mark.parametrize(
    "word", ["", ",part=1", "a\0", "a,part=", "a,part=x", "a,part=129", "a,format=vhd", "a,fs="]
)
def test_words_that_are_no_root(word: str) -> None:
    """What names nothing, or an option that cannot be, is refused."""
    with pytest.raises(UsageError, match="--root"):
        parse_root(word)
