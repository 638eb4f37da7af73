"""The bytes of an initramfs, and when it is made anew."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from cloche.errors import HostError
from cloche.kernel import initramfs
from cloche.kernel.initramfs import ensure_initramfs, pack_initramfs
from cloche.kernel.store import KernelInfo


class Entry(NamedTuple):
    """What an archive says about one file."""

    mode: int
    device: tuple[int, int]
    content: bytes


def unpack(archive: bytes) -> dict[str, Entry]:
    """Read a newc archive, as Documentation/driver-api/early-userspace/buffer-format.rst describes it."""
    found: dict[str, Entry] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        _inode, mode, uid, gid, _links, mtime, size, _maj, _min, rmajor, rminor, name_size, _check = fields
        assert (uid, gid, mtime) == (0, 0, 0)
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert len(archive) % 4 == 0
            return found
        found[name] = Entry(mode, (rmajor, rminor), archive[at : at + size])
        at = (at + size + 3) & ~3


def kernel(kind: str = "built", modules: tuple[str, ...] = ()) -> KernelInfo:
    """Return a kernel that exists in name only."""
    return KernelInfo("k1", kind, "6.12", ("microvm",), "/nowhere", 1, "", modules, "/nowhere")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide an agent of made-up content, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "agent"
    path.write_bytes(b"agent!")
    return path


def test_archive_holds_the_agent_and_what_it_stands_on() -> None:
    """PID 1 finds its mount points and the two devices that must exist before it can make any."""
    entries = unpack(pack_initramfs(b"agent"))
    assert entries["init"] == Entry(stat.S_IFREG | 0o755, (0, 0), b"agent")
    assert entries["dev/console"].device == (5, 1)
    assert entries["dev/null"].device == (1, 3)
    assert stat.S_ISCHR(entries["dev/console"].mode)
    assert all(stat.S_ISDIR(entries[name].mode) for name in ("dev", "proc", "sys"))
    assert "modules" not in entries


def test_modules_are_listed_in_load_order() -> None:
    """The list names every module, once, in the order in which they were given."""
    entries = unpack(pack_initramfs(b"agent", [("virtio.ko", b"one"), ("9p.ko", b"three")]))
    paths = entries["modules"].content.decode().splitlines()
    assert [os.path.basename(path) for path in paths] == ["000-virtio.ko", "001-9p.ko"]
    assert [entries[path.removeprefix("/")].content for path in paths] == [b"one", b"three"]


def test_directories_come_before_what_is_in_them() -> None:
    """The kernel unpacks in order and makes no parents."""
    seen: set[str] = {""}
    for name in unpack(pack_initramfs(b"agent", [("a.ko", b"a")])):
        assert os.path.dirname(name) in seen
        seen.add(name)


def test_same_inputs_give_the_same_bytes() -> None:
    """Nothing of the time, the user or the machine gets in."""
    assert pack_initramfs(b"agent", [("a.ko", b"a")]) == pack_initramfs(b"agent", [("a.ko", b"a")])


def test_archive_is_made_once_for_an_agent(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start makes nothing."""
    path = ensure_initramfs(kernel(), str(agent))
    assert unpack(Path(path).read_bytes())["init"].content == b"agent!"
    monkeypatch.setattr(initramfs, "pack_initramfs", None)
    assert ensure_initramfs(kernel(), str(agent)) == path


def test_built_kernels_share_one_archive(agent: Path) -> None:
    """Without modules nothing in it depends on the kernel."""
    other = kernel()._replace(id="k2")
    assert ensure_initramfs(kernel(), str(agent)) == ensure_initramfs(other, str(agent))


def test_new_agent_gets_a_new_archive_and_old_ones_do_not_pile_up(agent: Path) -> None:
    """A rebuilt agent is never run from an old archive."""
    paths = set()
    for number in range(20):
        agent.write_bytes(b"agent %d" % number)
        os.utime(agent, ns=(number, number))
        path = ensure_initramfs(kernel(), str(agent))
        paths.add(path)
        assert unpack(Path(path).read_bytes())["init"].content == b"agent %d" % number
    assert len(paths) == 20
    assert len(os.listdir(os.path.dirname(paths.pop()))) < 12


def test_modules_of_a_fetched_kernel_are_put_in(agent: Path, tmp_path: Path) -> None:
    """A kernel with modules gets an archive of its own."""
    module = tmp_path / "a.ko"
    module.write_bytes(b"module")
    path = ensure_initramfs(kernel("fetched", (str(module),)), str(agent))
    assert path != ensure_initramfs(kernel(), str(agent))
    assert unpack(Path(path).read_bytes())["lib/000-a.ko"].content == b"module"


def test_missing_agent_is_one_sentence(tmp_path: Path) -> None:
    """The message names the file that is missing."""
    with pytest.raises(HostError, match=r"cannot read the agent .*/nothing"):
        ensure_initramfs(kernel(), str(tmp_path / "nothing"))


def test_unwritable_cache_is_one_sentence(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what could not be written."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(HostError, match="cannot write"):
        ensure_initramfs(kernel(), str(agent))


def test_nothing_is_made_for_a_dry_plan(agent: Path, tmp_path: Path) -> None:
    """The path is the one the archive would have, and nothing is written."""
    path = ensure_initramfs(kernel(), str(agent), make=False)
    assert not (tmp_path / "cache").exists()
    assert ensure_initramfs(kernel(), str(agent)) == path
