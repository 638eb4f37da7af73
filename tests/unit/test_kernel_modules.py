"""Which modules a guest of a distribution's kernel gets, in which order."""

from __future__ import annotations

import gzip
import lzma
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import KernelError
from cloche.kernel.modules import dependencies, module_name, needed_modules, read_module, read_modules
from cloche.kernel.store import KernelInfo

if TYPE_CHECKING:
    from pathlib import Path


def module(depends: str) -> bytes:
    """Return what matters of a module file: its .modinfo section."""
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0name=x\0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Provide a module tree: virtio_console needs virtio and ring, 9p needs 9pnet, one file is compressed."""
    files = {
        "drivers/virtio/virtio.ko": module(""),
        "drivers/virtio/virtio_ring.ko": module("virtio"),
        "drivers/virtio/virtio_pci.ko": module("virtio_ring,virtio"),
        "drivers/char/virtio_console.ko.xz": lzma.compress(module("virtio_ring,virtio")),
        "net/9p/9pnet.ko.gz": gzip.compress(module("")),
        "fs/9p/9p.ko": module("9pnet"),
        "drivers/net/other-thing.ko": module(""),
    }
    for name, content in files.items():
        path = tmp_path / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def names(paths: tuple[str, ...]) -> list[str]:
    """Return the modules' names."""
    return [module_name(path) for path in paths]


def test_dependencies_come_first_and_once(tree: Path) -> None:
    """Every module follows what it needs."""
    found = names(needed_modules(str(tree), ("virtio_pci", "virtio_console", "9p")))
    assert found == ["virtio", "virtio_ring", "virtio_pci", "virtio_console", "9pnet", "9p"]


def test_what_is_not_wanted_is_left_out(tree: Path) -> None:
    """The initramfs holds what a guest needs and nothing else."""
    assert "other_thing" not in names(needed_modules(str(tree)))


def test_module_that_the_kernel_does_not_have_is_passed_over(tree: Path) -> None:
    """It may be built in, or the kernel may do without."""
    assert names(needed_modules(str(tree), ("ext4", "virtio"))) == ["virtio"]


def test_kernel_that_cannot_reach_the_agent_is_refused(tree: Path) -> None:
    """Without virtio_console there is no channel, unless the kernel has it built in."""
    (tree / "kernel/drivers/char/virtio_console.ko.xz").unlink()
    with pytest.raises(KernelError, match="has no virtio_console"):
        needed_modules(str(tree))
    (tree / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")
    assert "virtio_pci" in names(needed_modules(str(tree)))


def test_dashes_and_underscores_are_the_same() -> None:
    """File names have dashes where the kernel's names have underscores."""
    assert module_name("/lib/modules/x/virtio-rng.ko.xz") == "virtio_rng"
    assert dependencies(module("rng-core,virtio")) == ["rng_core", "virtio"]
    assert dependencies(module("")) == dependencies(b"no section") == []


def test_modules_are_given_uncompressed_with_their_names(tree: Path) -> None:
    """The agent's finit_module takes no compressed file."""
    paths = needed_modules(str(tree), ("virtio_console",))
    kernel = KernelInfo("k", "fetched", "6.1", ("q35",), "", 0, "", paths, "")
    read = dict(read_modules(kernel))
    assert list(read) == ["virtio.ko", "virtio_ring.ko", "virtio_console.ko"]
    assert read["virtio_console.ko"] == module("virtio_ring,virtio")


def test_modules_of_the_host_are_looked_up_when_read(tree: Path) -> None:
    """The host's tree can change with an upgrade: it is read when the initramfs is made."""
    host = KernelInfo("host", "host", tree.name, ("q35",), "", 0, "", (), "")
    assert "virtio_pci.ko" in dict(read_modules(host, str(tree.parent)))


MODULE = b"\x7fELF" + bytes(100) + b"\0depends=a-b,c\0" + bytes(100)


@given(st.sampled_from(["", ".gz", ".xz"]), st.integers(0, 300), st.integers(0, 4), st.binary(max_size=4))
def test_any_module_is_read_or_one_sentence(suffix: str, place: int, cut: int, noise: bytes) -> None:
    """A damaged module is read, as far as nobody can tell, or refused in one sentence."""
    whole = {"": MODULE, ".gz": gzip.compress(MODULE), ".xz": lzma.compress(MODULE)}[suffix]
    place %= len(whole) + 1
    with tempfile.NamedTemporaryFile(suffix=f".ko{suffix}") as file:
        file.write(whole[:place] + noise + whole[place + cut :])
        file.flush()
        said = ""
        try:
            dependencies(read_module(file.name))
        except KernelError as error:
            said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("suffix", [".ko.xz", ".ko.gz", ".ko.zst", ".ko"])
def test_damaged_or_unknown_module_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    """The message names the file."""
    path = tmp_path / f"m{suffix}"
    if suffix != ".ko":
        path.write_bytes(b"not what the suffix says")
    with pytest.raises(KernelError, match=r"module .*m\.ko"):
        read_module(str(path))
