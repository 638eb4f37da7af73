"""Tables of cloche.toml as words of the command line: a word means what its table says, or there is an error."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloche.errors import UsageError
from cloche.plan.disks import parse_disk
from cloche.plan.mounts import parse_mount
from cloche.plan.shares import normalize_guest_path, parse_share
from cloche.profile.words import join_word

#: Names made of what words are made of, so that they look like options.
NAMES = st.lists(
    st.sampled_from(["/", "a", ":", ",", "=", "ro", "rw", "at=", "format=", "raw", "size:", "1G"]), max_size=6
)
PATHS = NAMES.map(lambda parts: "/" + "".join(parts))


@given(PATHS, st.none() | st.booleans(), st.none() | PATHS)
@example("/a:at=/b", None, None)
@example("/a:rw", False, "/b")
@example("/a", True, "/b:ro")
def test_a_share_is_what_its_table_says(source: str, rw: bool | None, at: str | None) -> None:
    """Directory, rights and place come through the word unchanged, however they are named."""
    table = {name: value for name, value in (("dir", source), ("rw", rw), ("at", at)) if value is not None}
    try:
        word = join_word("share", table)
    except UsageError:
        assert ":" in source + str(at)
        return
    assert parse_share(word) == (source, bool(rw), at)


@given(PATHS, st.none() | st.booleans(), st.none() | st.sampled_from(["raw", "qcow2"]))
@example("/a,ro", None, None)
@example("/a,format=qcow2", True, None)
def test_a_disk_is_what_its_table_says(file: str, ro: bool | None, kind: str | None) -> None:
    """File, format and rights come through the word unchanged, however the file is named."""
    table = {
        name: value for name, value in (("file", file), ("ro", ro), ("format", kind)) if value is not None
    }
    try:
        word = join_word("disk", {"tag": "x", **table})
    except UsageError:
        assert file.endswith(",ro")
        return
    assert tuple(parse_disk(word)) == ("x", file, kind or "raw", not ro, 0)


@given(
    st.sampled_from(["host-bind", "host-image", "guest-bind", "ram"]),
    st.none() | PATHS,
    st.fixed_dictionaries(
        {},
        optional={
            "at": PATHS,
            "rw": st.booleans(),
            "format": st.sampled_from(["raw", "qcow2"]),
            "fs": st.sampled_from(["ext4", "a,rw", "rw"]),
            "part": st.integers(1, 3),
            "size": st.sampled_from(["1G", "1"]),
        },
    ),
)
@example("host-bind", "/a,rw", {})
@example("host-image", "/a,at=/b", {"at": "/c"})
@example("host-bind", None, {"at": "/c"})
def test_a_mount_means_what_its_table_says(kind: str, source: str | None, options: dict[str, object]) -> None:
    """Whatever comes through the word is what the table says; the rest is refused."""
    try:
        mount = parse_mount(
            join_word("mount", {"kind": kind, **({} if source is None else {"source": source}), **options})
        )
    except UsageError:
        return
    assert mount.kind == kind
    assert mount.source == (source or "") or kind == "guest-bind"
    assert mount.target == (normalize_guest_path(str(options["at"])) if "at" in options else None)
    assert mount.writable == bool(options.get("rw", kind in ("guest-bind", "ram")))
    assert (mount.format, mount.fs, mount.part) == tuple(
        options.get(name, nothing) for name, nothing in (("format", ""), ("fs", ""), ("part", 0))
    )


@pytest.mark.parametrize(
    "table, word",
    [
        ({"kind": "host-image", "source": "/a", "at": "/b"}, "host-image:/a,at=/b"),
        ({"kind": "host-bind", "source": "/a", "rw": True}, "host-bind:/a,rw"),
        ({"kind": "host-bind", "source": "/a,b", "rw": False}, "host-bind:/a,b,ro"),
        ({"kind": "host-image", "source": "/a", "part": 2, "fs": "ext4"}, "host-image:/a,fs=ext4,part=2"),
        ({"kind": "ram", "at": "/b", "size": "1G"}, "ram:at=/b,size=1G"),
        ({"kind": "guest-bind", "source": "/a", "at": "/b"}, "guest-bind:/a,at=/b"),
    ],
)
def test_a_mount_is_what_its_table_says(table: dict[str, object], word: str) -> None:
    """Kind and source come first, then the options."""
    assert join_word("mount", table) == word


@pytest.mark.parametrize(
    "name, table, message",
    [
        ("mount", {"kind": "host-bind", "source": "/a,rw"}, "named like an option"),
        ("mount", {"kind": "host-bind", "source": "/a,at=/b,c"}, "named like an option"),
        ("mount", {"kind": "host-bind", "source": "/a", "at": "/b,ro"}, "holds a comma"),
        ("mount", {"kind": "ram:at=/x", "at": "/b"}, "there is no mount"),
        ("disk", {"tag": "x"}, "needs a file or a size"),
        ("disk", {"tag": "x", "file": "/a", "size": "1G"}, "needs a file or a size"),
        ("disk", {"tag": "x", "file": "size:1G"}, "named like an option"),
    ],
)
def test_what_no_word_can_say_is_refused(name: str, table: dict[str, object], message: str) -> None:
    """A table that would mean something else as a word is an error."""
    with pytest.raises(UsageError, match=message):
        join_word(name, table)
