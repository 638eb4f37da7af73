"""The initramfs of a guest: the agent as ``/init``, and the modules a kernel needs (layer 3).

Written here, in the "newc" form of Linux' ``Documentation/driver-api/early-userspace/buffer-format.rst``, because what
has to be in it (device nodes, files of root's) cannot be made as files by an ordinary user. Uncompressed: QEMU
copies it into memory anyway, and unpacking would be emulated. The same inputs give the same bytes.

``/modules`` in it, if there are any, names the module files, one absolute path a line; the agent loads them in this
order with finit_module(2). They are always uncompressed. ``/setup`` is a SETUP message of the protocol, whose steps the
agent does before it waits for a host.
"""

from __future__ import annotations

import os
import stat

from cloche.errors import HostError
from cloche.host.xdg import cache_dir
from cloche.kernel.store import BUILT, KernelInfo
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Raised whenever the same inputs are to give another archive.
FORMAT = 2
MODULE_LIST, SETUP = "modules", "setup"
_KEPT = 8
_DIRECTORIES = ("dev", "proc", "sys")
#: The kernel opens /dev/console for PID 1; Rust's runtime opens /dev/null for the descriptors that are missing.
_DEVICES = (("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3))
_MAGIC, _ALIGN, _TRAILER = b"070701", 4, "TRAILER!!!"


def ensure_initramfs(kernel: KernelInfo, agent: str, *, make: bool = True) -> str:
    """Return the path of the initramfs for a kernel and an agent binary, made now if it is not in the cache.

    Without ``make`` nothing is written: the path is the one it would have. The name holds the agent's inode, size and
    modification time, and the kernel's id if it needs modules, so that a start costs two ``stat`` calls.

    Raises:
        HostError: The agent is missing or the cache cannot be written.
        KernelError: A module is missing or cannot be unpacked.
    """
    try:
        status = os.stat(agent)
    except OSError as error:
        raise HostError(
            f"cannot read the agent {agent}: {error.strerror}", hint="Run `make setup` in cloche's directory."
        ) from error
    directory = os.path.join(cache_dir(), "initramfs")
    bare = kernel.kind == BUILT
    name = f"{FORMAT}-{'bare' if bare else kernel.id}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}.cpio"
    path = os.path.join(directory, name)
    if not make or os.path.exists(path):
        return path
    with open(agent, "rb") as file:
        binary = file.read()
    modules: Sequence[tuple[str, bytes]] = ()
    if not bare:
        from cloche.kernel.modules import read_modules

        modules = read_modules(kernel)
    try:
        _write(path, pack_initramfs(binary, modules))
        _prune(directory, path)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}",
            hint="Free some space there, make it writable for you, or point XDG_CACHE_HOME to another place.",
        ) from error
    return path


def write_with_setup(path: str, initramfs: str, setup: bytes) -> None:
    """Write ``initramfs`` again with a SETUP message in it.

    Raises:
        OSError: One cannot be read or the other written.
    """
    with open(initramfs, "rb") as file:
        data = file.read()
    # The kernel unpacks archives that follow each other as if they were one.
    data += bytes(-len(data) % _ALIGN)
    _write(path, data + _pack([(SETUP, stat.S_IFREG | 0o600, (0, 0), setup)]))


def pack_initramfs(agent: bytes, modules: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """Return the archive for an agent and ``(name, content)`` of modules in load order; pure."""
    return _pack(_entries(agent, modules))


def _pack(entries: Iterable[tuple[str, int, tuple[int, int], bytes]]) -> bytes:
    out = bytearray()
    for number, (name, mode, device, content) in enumerate(entries, 1):
        out += _header(number, name, mode, device, len(content))
        out += content
        out += bytes(-len(out) % _ALIGN)
    out += _header(0, _TRAILER, 0, (0, 0), 0)
    return bytes(out)


def _entries(
    agent: bytes, modules: Sequence[tuple[str, bytes]]
) -> Iterator[tuple[str, int, tuple[int, int], bytes]]:
    nothing = (0, 0)
    for name in _DIRECTORIES:
        yield name, stat.S_IFDIR | 0o755, nothing, b""
    for name, mode, major, minor in _DEVICES:
        yield name, stat.S_IFCHR | mode, (major, minor), b""
    yield "init", stat.S_IFREG | 0o755, nothing, agent
    if modules:
        yield "lib", stat.S_IFDIR | 0o755, nothing, b""
        paths = [f"lib/{index:03d}-{name}" for index, (name, _) in enumerate(modules)]
        for path, (_, content) in zip(paths, modules, strict=True):
            yield path, stat.S_IFREG | 0o644, nothing, content
        listing = "".join(f"/{path}\n" for path in paths)
        yield MODULE_LIST, stat.S_IFREG | 0o644, nothing, listing.encode()


def _header(inode: int, name: str, mode: int, device: tuple[int, int], size: int) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode mode uid gid links mtime size, device of the file system (2), device of a node (2), name, check sum
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, *device, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    return header + bytes(-len(header) % _ALIGN)


def _write(path: str, data: bytes) -> None:
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            # Whatever the caller's mask: a QEMU that root has started does not run as root.
            os.fchmod(file.fileno(), 0o644)
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def _prune(directory: str, keep: str) -> None:
    """Delete all but the newest archives: every rebuilt agent leaves one behind."""
    with os.scandir(directory) as entries:
        files = sorted((entry.stat().st_mtime, entry.path) for entry in entries if entry.path != keep)
    for _, path in files[:-_KEPT]:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue  # Another cloche was faster.
