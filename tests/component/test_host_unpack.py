"""Archives that a guest has made, unpacked on the host: exactly when they are honest, and never outside."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloche.errors import ProtocolError
from cloche.host import unpack as unpacking
from cloche.host.tarstream import TarReader
from cloche.host.unpack import leads_inside, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CREATE = ("tar", "-c", "--format=posix", "--sparse", "--xattrs", "--numeric-owner", "-f", "-")


def unpacked(data: bytes, into: Path, top: bytes = b"top", name: bytes = b"new") -> tuple[str, ...]:
    """Unpack an archive and return what was left out."""
    parent = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(io.BytesIO(data).read, top, parent, name)
    finally:
        os.close(parent)


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"", mode: int = 0o644
) -> bytes:
    """Return one member, without the end of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, len(data), mode
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


END = bytes(1024)


def everything(path: Path) -> list[str]:
    """Return every name below a directory, links not followed."""
    return sorted(
        os.path.relpath(os.path.join(where, name), path)
        for where, directories, files in os.walk(path)
        for name in (*directories, *files)
    )


def test_an_honest_tree_comes_out_as_it_was(tmp_path: Path) -> None:
    """Content, modes, times to the nanosecond, links, second names, holes, attributes, and names of any bytes."""
    source = tmp_path / "top"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(300_000))
    (source / "deep" / "second").hardlink_to(source / "file")
    (source / "deep" / "er" / "link").symlink_to("../../file")
    (source / "empty").touch(mode=0o600)
    odd = os.fsencode(source) + b"/odd \xff\n\x1b name"
    with open(odd, "wb") as file:
        file.write(b"odd")
    long = source / ("x" * 200) / ("y" * 200)
    long.mkdir(parents=True)
    with (source / "sparse").open("wb") as file:
        for at in (0, 5 << 20, 40 << 20):
            file.seek(at)
            file.write(b"data")
        file.truncate(64 << 20)
    os.setxattr(source / "file", "user.note", b"\0 any = thing\n")
    os.utime(source / "file", ns=(1, 1_000_000_000_123_456_789))
    (source / "deep").chmod(0o500)
    data = subprocess.run([*CREATE, "-C", tmp_path, "--", "top"], check=True, capture_output=True).stdout
    assert unpacked(data, tmp_path) == ()
    made = tmp_path / "new"
    assert everything(made) == everything(source)
    for name in everything(source):
        one, two = os.lstat(source / name), os.lstat(made / name)
        assert (one.st_mode, one.st_mtime_ns, one.st_size) == (two.st_mode, two.st_mtime_ns, two.st_size), (
            name
        )
    assert os.readlink(made / "deep" / "er" / "link") == "../../file"
    assert (made / "file").samefile(made / "deep" / "second")
    assert (made / "sparse").stat().st_blocks <= 64
    assert os.getxattr(made / "file", "user.note") == b"\0 any = thing\n"
    subprocess.run(["diff", "-r", source, made], check=True)
    (source / "deep").chmod(0o700)
    (made / "deep").chmod(0o700)


#: What a hostile archive tries: members, and a word of why the last one is left out.
ATTACKS = (
    ([entry("/top/x", data=b"!")], "its name leads elsewhere"),
    ([entry("top/../../x", data=b"!")], "its name leads elsewhere"),
    ([entry("top/./x", data=b"!")], "its name leads elsewhere"),
    ([entry("top//x", data=b"!")], "its name leads elsewhere"),
    ([entry("..", tarfile.DIRTYPE)], "its name leads elsewhere"),
    ([entry("other/x", data=b"!")], "it was not asked for"),
    ([entry("top/" + "n" * 300, data=b"!")], "too long"),
    ([entry("top", tarfile.DIRTYPE), entry("top/l", tarfile.SYMTYPE, "/")], "a link that leads outside"),
    ([entry("top", tarfile.DIRTYPE), entry("top/l", tarfile.SYMTYPE, "..")], "a link that leads outside"),
    ([entry("top/a/l", tarfile.SYMTYPE, "../../x")], "a link that leads outside"),
    ([entry("top", tarfile.SYMTYPE, "/outside")], "a link that leads outside"),
    # A link that stays inside and makes another one's .. count from elsewhere.
    (
        [
            entry("top/a/b/c", tarfile.DIRTYPE),
            entry("top/a/b/up", tarfile.SYMTYPE, "../.."),
            entry("top/l", tarfile.SYMTYPE, "a/b/up/../x"),
        ],
        "a link that leads outside",
    ),
    # A directory that becomes a link before something is put into it.
    (
        [entry("top/d", tarfile.SYMTYPE, "e"), entry("top/e", tarfile.DIRTYPE), entry("top/d/x", data=b"!")],
        "what should be a directory above it is none",
    ),
    ([entry("top/f", data=b"1"), entry("top/f/x", data=b"!")], "what should be a directory above it is none"),
    ([entry("top/d", tarfile.DIRTYPE), entry("top/d", data=b"!")], "a directory is there already"),
    ([entry("top/h", tarfile.LNKTYPE, "/outside/victim")], "its name leads elsewhere"),
    ([entry("top/h", tarfile.LNKTYPE, "top/../outside/victim")], "its name leads elsewhere"),
    ([entry("top/h", tarfile.LNKTYPE, "top/missing")], "second name of what is not there"),
    (
        [entry("top/l", tarfile.SYMTYPE, "x"), entry("top/h", tarfile.LNKTYPE, "top/l")],
        "what was not unpacked",
    ),
    ([entry("top/dev", tarfile.CHRTYPE)], "a device"),
    ([entry("top/dev", tarfile.BLKTYPE)], "a device"),
    ([entry("top/fifo", tarfile.FIFOTYPE)], "a device"),
    ([entry("top/odd", b"Z", data=b"!")], "something else that is no file"),
)


@pytest.mark.parametrize("members, why", ATTACKS)
def test_nothing_leads_outside(members: list[bytes], why: str, tmp_path: Path) -> None:
    """What tries it is left out and told; the rest is unpacked; outside nothing has changed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_bytes(b"mine")
    (tmp_path / "into").mkdir()
    before = everything(tmp_path)
    told = unpacked(b"".join([*members, entry("top/last", data=b"rest"), END]), tmp_path / "into")
    assert len(told) <= 2
    assert why in "".join(told[:1])
    assert [name for name in everything(tmp_path) if not name.startswith("into/")] == before
    assert everything(tmp_path / "into")[:1] in ([], ["new"])
    assert (tmp_path / "outside" / "victim").stat().st_nlink == 1
    for name in everything(tmp_path / "into"):
        assert (tmp_path / "into" / name).resolve(strict=False).is_relative_to(tmp_path / "into")


def test_what_the_caller_has_there_is_not_followed_either(tmp_path: Path) -> None:
    """A link of the caller's own in the target is no way out; what was linked there before is no source of links."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "way").symlink_to(tmp_path / "outside")
    (tmp_path / "new" / "mine").write_bytes(b"secret")
    told = unpacked(
        entry("top/way/x", data=b"!")
        + entry("top/h", tarfile.LNKTYPE, "top/mine")
        + entry("top/mine", data=b"new")
        + END,
        tmp_path,
    )
    assert [line.partition(": ")[2] for line in told] == [
        "what should be a directory above it is none",
        "it is a second name of what was not unpacked",
    ]
    assert everything(tmp_path / "outside") == []
    assert (tmp_path / "new" / "mine").read_bytes() == b"new"


def test_bits_that_give_rights_are_taken_away(tmp_path: Path) -> None:
    """Setuid, setgid and sticky; the owner is the caller; a directory without rights stops nothing that comes later."""
    members = [
        entry("top", tarfile.DIRTYPE, mode=0o7777),
        entry("top/f", data=b"x", mode=0o6755),
        entry("top/d", tarfile.DIRTYPE, mode=0),
        entry("top/d/e", tarfile.DIRTYPE, mode=0),
        entry("top/d/e/f", data=b"x", mode=0),
    ]
    assert unpacked(b"".join([*members, END]), tmp_path) == ()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/f", "new/d")]
    assert modes == [0o777, 0o755, 0]
    assert (tmp_path / "new" / "f").stat().st_uid == os.getuid()
    (tmp_path / "new" / "d").chmod(0o700)
    (tmp_path / "new" / "d" / "e").chmod(0o700)


def _follow(self: object, parts: tuple[bytes, ...]) -> int:
    """Walk as somebody would who trusts names."""
    parent: int = self._parent  # type: ignore[attr-defined]
    path = b"/".join((b"/proc/self/fd/%d" % parent, *parts))
    os.makedirs(path, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_without_the_walk_a_link_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: where names are followed, a file lands outside."""
    monkeypatch.setattr(unpacking._Unpacker, "_walk", _follow)
    monkeypatch.setattr(unpacking, "leads_inside", lambda target, depth: True)
    (tmp_path / "into").mkdir()
    (tmp_path / "outside").mkdir()
    unpacked(
        entry("top", tarfile.DIRTYPE)
        + entry("top/l", tarfile.SYMTYPE, "../../outside")
        + entry("top/l/x", data=b"!")
        + END,
        tmp_path / "into",
    )
    assert (tmp_path / "outside" / "x").read_bytes() == b"!"


@pytest.mark.parametrize(
    "target, depth, inside",
    [
        (b"x", 0, True), (b"./x/./y", 0, True), (b"..", 0, False), (b"..", 1, True), (b"../../x", 1, False),
        (b"../../x", 2, True), (b"a/..", 5, False), (b"../a/../b", 5, False), (b"/x", 5, False), (b"", 5, False),
        (b"a\0b", 5, False), (b"...", 0, True),
    ],
)  # fmt: skip
def test_where_links_may_lead(target: bytes, depth: int, inside: bool) -> None:
    """Up from their own directory as far as the top, and never up behind a name."""
    assert leads_inside(target, depth) is inside


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda data: data[:700], "ends in the middle"),
        (lambda data: data[:100], "ends too early"),
        (lambda data: b"", "ends too early"),
        (lambda data: b"x" * 2048, "no archive"),
        (lambda data: data[:10] + b"!" + data[11:], "damaged"),
        (lambda data: entry("top/x", b"x", data=b"8 path=a\n") + data, "damaged header"),
        (lambda data: entry("top/x", b"x", data=b"99999999 path=a\n") + data, "damaged header"),
    ],
)
def test_what_is_no_archive_is_said_to_be_none(
    damage: Callable[[bytes], bytes], why: str, tmp_path: Path
) -> None:
    """An error, and neither a traceback nor a loop."""
    data = entry("top/file", data=b"x" * 1000) + END
    with pytest.raises(ProtocolError, match=why):
        unpacked(damage(data), tmp_path)


def test_headers_and_maps_are_bounded(tmp_path: Path) -> None:
    """A header of gigabytes is refused before it is read, and a map that does not fit its file as well."""
    info = tarfile.TarInfo("top/x")
    info.type, info.size = b"x", 1 << 40
    with pytest.raises(ProtocolError, match="too long a header"):
        unpacked(info.tobuf(tarfile.GNU_FORMAT), tmp_path)
    for sparse in (b"1\n0\n600\n", b"2\n0\n4\n2\n4\n", b"99999999\n", b"x\n", b"1" * 600, b"1\n9999\n4\n"):
        info = tarfile.TarInfo("top/s")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000"}
        body = sparse.ljust(1024, b"\0")
        info.size = len(body)
        with pytest.raises(ProtocolError, match=r"sparse file|pieces|number"):
            unpacked(info.tobuf(tarfile.PAX_FORMAT) + body + END, tmp_path)


_PARTS = st.sampled_from(["top", "a", "b", "..", ".", "", "l", "/", "x" * 300])
_MEMBERS = st.lists(
    st.tuples(
        st.lists(_PARTS, min_size=1, max_size=4).map("/".join),
        st.sampled_from([b"0", b"5", b"2", b"1", b"3", b"6"]),
        st.lists(_PARTS, max_size=4).map("/".join),
    ),
    max_size=12,
)


@given(_MEMBERS)
@example([("b", b"2", "b//top")])
@example([("a", b"0", ""), ("a", b"1", "top/a")])
def test_whatever_comes_in_whatever_order_stays_inside(members: list[tuple[str, bytes, str]]) -> None:
    """No sequence of directories, links and files changes anything outside, and no link in the result leads there."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as place:
        into = Path(place, "into")
        into.mkdir()
        Path(place, "victim").write_bytes(b"mine")
        data = b"".join(
            entry(f"top/{name}", kind, target, b"!" if kind == b"0" else b"")
            for name, kind, target in members
        )
        unpacked(data + END, into) if members else None
        assert sorted(os.listdir(place)) == ["into", "victim"]
        assert set(os.listdir(into)) <= {"new"}
        for name in everything(into):
            try:
                os.stat(into / name)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    continue  # it leads nowhere; realpath takes two slashes on the way for a root
            assert (into / name).resolve(strict=False).is_relative_to(into)


@given(st.binary(max_size=2000))
def test_noise_is_no_archive(data: bytes) -> None:
    """Nothing but the one error comes out of any bytes."""
    try:
        for _ in TarReader(io.BytesIO(data).read):
            pass
    except ProtocolError:
        return
