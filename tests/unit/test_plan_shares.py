"""Reading --share and --include, and the places in the guest where nothing of the host may be."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import ShareError, UsageError
from cloche.model.request import Include, Share
from cloche.plan.places import check_places
from cloche.plan.shares import (
    ShareWord,
    contains,
    normalize_guest_path,
    parse_include,
    parse_share,
)
from support.plans import share

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
PATHS = st.lists(st.sampled_from(["", ".", "..", "a", "b c", "x:y", "\n", "ä", "\udcff"]), max_size=8).map(
    lambda parts: "/" + "/".join(parts)
)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("dir", ShareWord("dir", False, None)),
        ("/a/dir:ro", ShareWord("/a/dir", False, None)),
        ("/a/dir:rw", ShareWord("/a/dir", True, None)),
        ("dir:at=/b", ShareWord("dir", False, "/b")),
        ("dir:rw:at=/b", ShareWord("dir", True, "/b")),
        ("dir:at=/b:rw", ShareWord("dir", True, "/b")),
        ("a:b", ShareWord("a:b", False, None)),
        ("a:b:c:rw", ShareWord("a:b:c", True, None)),
        ("a:rw:b", ShareWord("a:rw:b", False, None)),
        ("a:ro:rw", ShareWord("a:ro", True, None)),
        ("a:at=/x:at=/y", ShareWord("a:at=/x", False, "/y")),
        ("a:", ShareWord("a:", False, None)),
        ("a::rw", ShareWord("a:", True, None)),
        ("two words\nand lines:rw", ShareWord("two words\nand lines", True, None)),
        ("a\udcff:at=/\udcfe", ShareWord("a\udcff", False, "/\udcfe")),
        ("a=b:at=/c=d", ShareWord("a=b", False, "/c=d")),
        ("a:RW", ShareWord("a:RW", False, None)),
    ],
)
def test_words_of_share(word: str, expected: ShareWord) -> None:
    """Options are taken from the right, each once, and the rest is the directory's name."""
    assert parse_share(word) == expected


@pytest.mark.parametrize(
    "word", ["", ":rw", ":at=/x", ":ro:at=/x", "dir:at=", "dir:rw:at=", "a\0b", "a:at=/x\0"]
)
def test_words_that_name_no_directory(word: str) -> None:
    """A word without a directory or with an empty place, and one no name can be, is refused."""
    with pytest.raises(UsageError):
        parse_share(word)


@given(TEXT.filter(bool), st.booleans(), st.none() | TEXT.filter(lambda text: text and ":" not in text))
def test_what_is_written_is_read(source: str, writable: bool, target: str | None) -> None:
    """Whatever a directory is called, saying every option explicitly gives exactly it."""
    if target is None:
        assert parse_share(f"{source}:{'rw' if writable else 'ro'}:at=/p") == (source, writable, "/p")
    else:
        assert parse_share(f"{source}:at={target}:{'rw' if writable else 'ro'}") == (source, writable, target)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("/etc/app.conf=./app.conf", ("/etc/app.conf", "./app.conf")),
        ("/a=b=c", ("/a", "b=c")),
        ("//a/./b/../c/=x", ("/a/c", "x")),
    ],
)
def test_words_of_include(word: str, expected: tuple[str, str]) -> None:
    """The guest's path ends at the first equals sign and is made normal; the host's is left as it is."""
    assert parse_include(word) == expected


@pytest.mark.parametrize("word", ["", "=", "/a", "/a=", "=b", "a=b", "../a=b", "/../a=b", "/a=b\0", "/a\0=b"])
def test_words_that_include_nothing(word: str) -> None:
    """A missing side, or a guest path that is relative or leaves the root, is refused."""
    with pytest.raises(UsageError):
        parse_include(word)


@given(PATHS)
def test_normal_paths(path: str) -> None:
    """A path is made normal as posixpath does, or refused when it climbs above the root."""
    depth = lowest = 0
    for part in path.split("/"):
        depth += 0 if part in ("", ".") else -1 if part == ".." else 1
        lowest = min(lowest, depth)
    if lowest < 0:
        with pytest.raises(UsageError, match="leaves the root"):
            normalize_guest_path(path)
        return
    normal = normalize_guest_path(path)
    assert normal == posixpath.normpath("/" + path.lstrip("/"))
    assert normalize_guest_path(normal) == normal


@pytest.mark.parametrize("path", ["", "a", "./a", "a/../b", "/a\0"])
def test_paths_that_are_none(path: str) -> None:
    """An empty path, a relative one and one with a NUL byte are refused."""
    with pytest.raises(UsageError):
        normalize_guest_path(path)


def refuse(*things: Share | Include) -> ShareError:
    """Return the error that places give."""
    with pytest.raises(ShareError) as caught:
        check_places(
            tuple(thing for thing in things if isinstance(thing, Share)),
            tuple(thing for thing in things if isinstance(thing, Include)),
        )
    return caught.value


@pytest.mark.parametrize(
    "target",
    [
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib64",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/etc",
        "/dev",
        "/dev/shm",
        "/dev/shm/x",
        "/proc",
        "/proc/x",
        "/sys/fs/x",
        "/run",
        "/run/user/1000",
        "/var/run/x",
        "/var/lock",
        "/",
    ],
)
def test_reserved_places(target: str) -> None:
    """No share is at the ground the guest stands on, nor at or below what its kernel and agent fill."""
    error = refuse(share("/data", target))
    assert target in error.message
    assert error.hint


@pytest.mark.parametrize(
    "target",
    [
        "/etc/ssh",
        "/etc/app",
        "/usr/local",
        "/usr/local/bin",
        "/usr/share/app",
        "/usr/libx",
        "/opt",
        "/home",
        "/home/alice",
        "/tmp",
        "/tmp/x",
        "/var/lib/app",
        "/root",
        "/mnt/data",
        "/data",
        "/device",
        "/processes",
        "/runs",
        "/with\nlines",
        "/with\udcffbytes",
    ],
)
def test_places_that_are_free(target: str) -> None:
    """Everywhere else a share may be, below the guest's own directories too: the user has said so."""
    check_places((share("/data", target),))


@pytest.mark.parametrize("target", ["/", "/dev/x", "/proc/x", "/sys/x", "/run/x", "/var/run/x", "/dev"])
def test_places_no_copy_can_be(target: str) -> None:
    """A copy cannot be where it would be hidden when the guest is complete."""
    assert target in refuse(Include("/file", target)).message


@pytest.mark.parametrize(
    "target", ["/etc/app.conf", "/usr/bin/tool", "/bin/tool", "/home/alice/.app", "/tmp/x"]
)
def test_places_for_copies(target: str) -> None:
    """A copy may replace or add any file of the guest's own layer."""
    check_places((share("/data"),), (Include("/file", target),))


def test_a_copy_is_never_made_in_a_share() -> None:
    """A copy inside a share would be written to the host, so it is refused; beside or above one it is fine."""
    assert "/data" in refuse(share("/data", "/x", writable=True), Include("/file", "/x/y/file")).message
    check_places((share("/data", "/x/y"),), (Include("/file", "/x/file"), Include("/dir", "/x2")))


def test_one_thing_at_one_place() -> None:
    """Two shares, two copies, or one of each at the same place are refused."""
    assert "/x" in refuse(share("/a", "/x"), share("/b", "/x")).message
    assert "/x" in refuse(Include("/a", "/x"), Include("/b", "/x")).message
    assert "/x" in refuse(share("/a", "/x"), Include("/b", "/x")).message


def test_shares_in_shares_only_where_the_host_has_them() -> None:
    """A share inside another one needs its mount point there: the same directory of the host is one, another is not."""
    outer, inner = share("/a", writable=True), share("/a/b/c")
    check_places((outer, inner))
    check_places((inner, outer))
    check_places((share("/a", "/x"), share("/a/b", "/x/b", writable=True)))
    for wrong in (share("/elsewhere", "/a/b"), share("/a/b", "/a/c"), share("/a", "/a/b")):
        error = refuse(outer, wrong)
        assert wrong.target in error.message
        assert "/a" in error.message
        refuse(wrong, outer)


def test_neighbours_are_not_inside_each_other() -> None:
    """A name that only begins like another one is another place."""
    check_places((share("/a"), share("/b", "/ab"), share("/c", "/a-b"), share("/d", "/a b")))


def test_too_many_shares() -> None:
    """Shares and copies together have a limit, and the error says it."""
    many = tuple(share(f"/{number}") for number in range(64))
    check_places(many)
    assert "64" in refuse(*many, Include("/f", "/tmp/f")).message


@given(PATHS.map(posixpath.normpath), PATHS.map(posixpath.normpath))
def test_contains_is_what_commonpath_says(tree: str, path: str) -> None:
    """A tree contains what has all of its path in front."""
    tree, path = tree.replace("//", "/"), path.replace("//", "/")
    assert contains(tree, path) == (posixpath.commonpath([tree, path]) == tree)
