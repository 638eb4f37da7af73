"""Which modules a distribution's kernel needs to reach the agent, and their contents (layer 3).

Only for kernels that are not made by cloche; a built one has no modules. What a module depends on is read from the
module itself (``depends=`` in its ``.modinfo`` section, as modinfo(8) shows it): a package that was unpacked and not
installed has no ``modules.dep`` yet, and so no program needs to be started.
"""

from __future__ import annotations

import os

from cloche.errors import KernelError
from cloche.kernel.store import HOST, KernelInfo
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What a guest on q35 is made of; what a kernel has built in, or does not have at all, is passed over.
WANTED = (
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "fuse",
    "virtiofs",
    "overlay",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    # ext4 asks for its check sum by name at mount time; nobody in the guest would answer such a request.
    "crc32c_generic",
    "ext4",
    "erofs",
    "squashfs",
    "loop",
    "tun",
    "binfmt_misc",
    "unix",
    "ipv6",
)
#: Without these no agent can be reached or has files to run programs from.
REQUIRED = ("virtio_pci", "virtio_console")
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


def needed_modules(tree: str, wanted: Iterable[str] = WANTED) -> tuple[str, ...]:
    """Return the files of a module tree (``.../lib/modules/VERSION``) to load: absolute paths in load order.

    Raises:
        KernelError: One of :data:`REQUIRED` is neither there nor built in, or a module is damaged.
    """
    files = _module_files(tree)
    builtin = _builtin_names(tree)
    order: dict[str, None] = {}

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in order:
            return
        for dependency in dependencies(read_module(path)):
            add(dependency)
        order[path] = None

    for name in wanted:
        if name in REQUIRED and name not in files and name not in builtin:
            raise KernelError(
                f"the kernel of {tree} has no {name}, which a guest cannot do without",
                hint="`cloche kernel build` makes one that has everything.",
            )
        add(name)
    return tuple(order)


def dependencies(module: bytes) -> list[str]:
    """Return the names of the modules that a module's content says must be loaded before it."""
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    start += len(b"\0depends=")
    names = module[start : module.find(b"\0", start)].decode("ascii", "replace")
    return [name.replace("-", "_") for name in names.split(",") if name]


def read_modules(kernel: KernelInfo, lib: str = "/lib/modules") -> list[tuple[str, bytes]]:
    """Return ``(name.ko, uncompressed content)`` of a kernel's modules in load order.

    Raises:
        KernelError: A module is missing or cannot be unpacked.
    """
    paths = kernel.modules
    if kernel.kind == HOST:
        paths = needed_modules(os.path.join(lib, kernel.version))
    return [(f"{module_name(path)}.ko", read_module(path)) for path in paths]


def read_module(path: str) -> bytes:
    """Return the uncompressed content of a module file.

    Raises:
        KernelError: It is missing, broken, or compressed in a way Python cannot undo.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        if path.endswith(".xz"):
            import lzma

            return lzma.decompress(data)
        if path.endswith(".gz"):
            import gzip

            return gzip.decompress(data)
    except (OSError, EOFError, ValueError) as error:
        raise KernelError(f"cannot read the module {path}: {error}") from error
    except Exception as error:
        # zlib's and lzma's own, which are imported only for a module that needs them.
        if type(error).__name__ in ("LZMAError", "error"):
            raise KernelError(f"the module {path} is damaged: {error}") from error
        raise
    if path.endswith(".zst"):
        raise KernelError(
            f"the module {path} is compressed with zstd, which cloche cannot unpack",
            hint="'cloche kernel build' makes a kernel without modules",
        )
    return data


def module_name(path: str) -> str:
    """Return a module's name as the kernel knows it: no directory, no suffix, dashes as underscores."""
    name = os.path.basename(path)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace("-", "_")


def _module_files(tree: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for directory, _, names in os.walk(os.path.join(tree, "kernel")):
        for name in names:
            if name.endswith(_SUFFIXES):
                found[module_name(name)] = os.path.join(directory, name)
    return found


def _builtin_names(tree: str) -> frozenset[str]:
    try:
        with open(os.path.join(tree, "modules.builtin"), encoding="utf-8", errors="surrogateescape") as file:
            return frozenset(module_name(line.strip()) for line in file)
    except FileNotFoundError:
        return frozenset()  # Hand-made trees have none; then nothing is known to be built in.
