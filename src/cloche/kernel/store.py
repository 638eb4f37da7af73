"""The guest kernels this user has, and which of them a run gets (layer 3).

A kernel is a directory ``$XDG_CACHE_HOME/cloche/kernels/ID/`` that holds its image (``vmlinux`` or ``vmlinuz``), the
modules it needs below ``modules/``, and ``info``, the text file described in :func:`read_info`. It appears whole, by a
rename, and is never changed afterwards. ``default`` beside them is the symbolic link that ``cloche kernel use`` makes.

This module is on the way to every start: it imports nothing heavier than ``os``, starts no process and reads no more
than a few hundred bytes. Hashes are checked by :func:`verify_kernel` only, when somebody asks.
"""

from __future__ import annotations

import os

from cloche.errors import KernelError, UsageError
from cloche.host.xdg import cache_dir
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

BUILT, FETCHED, HOST = "built", "fetched", "host"
DEFAULT_LINK = "default"
INFO = "info"
HINT_GET = "run 'cloche kernel build' (some minutes, starts fastest) or 'cloche kernel fetch' (a download)"

_ELF = b"\x7fELF"
_BZIMAGE_OFFSET, _BZIMAGE = 0x202, b"HdrS"


class KernelInfo(Record):
    """One guest kernel.

    Attributes:
        id: Its name on the command line.
        kind: ``built``, ``fetched`` or ``host``.
        version: What its ``uname -r`` says.
        machines: The QEMU machine types it can run on, the best first.
        image: The absolute path of the file QEMU loads.
        size_bytes: The size the image must have.
        sha256: The hash the image must have, in hex; empty for a host's kernel, which nobody recorded.
        modules: Absolute paths of module files (``.ko``, maybe compressed) in the order they must be loaded in.
        directory: Its place in the store; empty for the host's own.
        abilities: What it was taught beyond Linux of its version (:data:`LO_ON_DEMAND`, :data:`EMPTY_DRIVE`).
    """

    id: str
    kind: str
    version: str
    machines: tuple[str, ...]
    image: str
    size_bytes: int
    sha256: str
    modules: tuple[str, ...]
    directory: str
    abilities: tuple[str, ...] = ()


def kernels_home() -> str:
    """Return the directory of the kernels (not made here)."""
    return os.path.join(cache_dir(), "kernels")


def find_kernel(wanted: str | None = None) -> KernelInfo:
    """Return the kernel a run gets: the one asked for, else a built one, else the host's own, else a fetched one.

    ``wanted`` is an id, an unambiguous beginning of one, ``built``, ``fetched``, ``host``, or the path of a kernel's
    directory. Without it the kernel named by ``cloche kernel use`` counts as asked for. Nothing is ever compiled here.

    Raises:
        KernelError: There is none, or it is damaged.
    """
    if wanted:
        return _checked(_find_wanted(wanted))
    default = default_id()
    if default is not None:
        return _checked(_load(os.path.join(kernels_home(), default)))
    stored = stored_kernels()
    for kernel in stored:
        if kernel.kind == BUILT:
            return _checked(kernel)
    host = host_kernel()
    if host is not None:
        return _checked(host)
    if stored:
        return _checked(stored[0])
    raise KernelError("there is no guest kernel yet", hint=HINT_GET)


def list_kernels() -> list[KernelInfo]:
    """Return every kernel that can be asked for: the stored ones, newest first, then the host's own."""
    host = host_kernel()
    return [*stored_kernels(), *([host] if host else [])]


def stored_kernels() -> list[KernelInfo]:
    """Return the stored kernels, newest first. A directory that is not (yet, or no longer) a kernel is left out."""
    home = kernels_home()
    found: list[tuple[float, KernelInfo]] = []
    try:
        entries = os.listdir(home)
    except OSError:
        return []
    for name in entries:
        if name == DEFAULT_LINK or name.startswith("."):
            continue
        path = os.path.join(home, name)
        try:
            found.append((os.stat(os.path.join(path, INFO)).st_mtime, _load(path)))
        except (OSError, KernelError):
            continue
    found.sort(key=lambda pair: (-pair[0], pair[1].id))
    return [kernel for _, kernel in found]


def default_id() -> str | None:
    """Return the id ``cloche kernel use`` chose, or None."""
    try:
        return os.path.basename(os.readlink(os.path.join(kernels_home(), DEFAULT_LINK)))
    except OSError:
        return None


def use_kernel(wanted: str | None) -> KernelInfo | None:
    """Make the kernel the default of every run; None goes back to the order of :func:`find_kernel`.

    Raises:
        KernelError: There is no such kernel, or it is damaged.
        UsageError: The host's own kernel is not in the store and cannot be the default.
    """
    link = os.path.join(kernels_home(), DEFAULT_LINK)
    if wanted is None:
        _unlink(link)
        return None
    kernel = find_kernel(wanted)
    if not kernel.directory or os.path.dirname(kernel.directory) != kernels_home():
        raise UsageError(
            f"kernel {kernel.id} is not in the store", hint=f"name it at each run: --kernel {wanted}"
        )
    temporary = f"{link}.{os.getpid()}"
    _unlink(temporary)
    os.symlink(kernel.id, temporary)
    os.rename(temporary, link)
    return kernel


def remove_kernel(wanted: str) -> str:
    """Delete a stored kernel, damaged ones too, and return its id. If it was the default there is none afterwards.

    Raises:
        KernelError: There is no such kernel, or it cannot be deleted.
    """
    home = kernels_home()
    path = os.path.join(home, wanted)
    if (
        wanted in ("", ".", "..", DEFAULT_LINK)
        or "/" in wanted
        or not os.path.isdir(path)
        or os.path.islink(path)
    ):
        path = _find_wanted(wanted).directory
    if not path or os.path.dirname(path) != home:
        raise KernelError(f"kernel {wanted} is not in the store", hint="'cloche kernel list' shows what is")
    name = os.path.basename(path)
    if default_id() == name:
        use_kernel(None)
    # Out of sight in one step, so that nobody finds half a kernel.
    hidden = os.path.join(home, f".removed-{name}.{os.getpid()}")
    try:
        os.rename(path, hidden)
        remove_tree(hidden)
    except OSError as error:
        raise KernelError(
            f"cannot remove kernel {name}: {error.strerror}", hint=f"See to whom {home} belongs."
        ) from error
    return name


def publish_kernel(kernel: KernelInfo, prepared: str) -> KernelInfo:
    """Put a prepared directory into the store in one step and return the kernel as it is known from then on.

    ``prepared`` is a directory in the cache that holds image and modules at the paths ``kernel`` names; ``info`` is
    written here. A kernel of the same id is replaced.
    """
    os.makedirs(kernels_home(), exist_ok=True)
    final = os.path.join(kernels_home(), kernel.id)
    data = format_info(kernel, prepared)
    with open(os.path.join(prepared, INFO), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    old = os.path.join(kernels_home(), f".replaced-{kernel.id}.{os.getpid()}")
    try:
        os.rename(final, old)
    except FileNotFoundError:
        old = ""
    os.rename(prepared, final)
    if old:
        remove_tree(old)
    return _load(final)


def format_info(kernel: KernelInfo, root: str) -> bytes:
    """Return the content of ``info`` for a kernel whose files lie below ``root``; see :func:`read_info`."""
    lines = [
        "cloche-kernel 1",
        f"kind {kernel.kind}",
        f"version {kernel.version}",
        f"machines {' '.join(kernel.machines)}",
        f"image {os.path.relpath(kernel.image, root)}",
        f"size {kernel.size_bytes}",
        f"sha256 {kernel.sha256}",
        *([f"abilities {' '.join(kernel.abilities)}"] if kernel.abilities else []),
        *(f"module {os.path.relpath(path, root)}" for path in kernel.modules),
    ]
    return os.fsencode("\n".join(lines) + "\n")


def read_info(directory: str) -> KernelInfo:
    """Read a kernel's ``info``: lines of ``KEY VALUE``, the first one ``cloche-kernel 1``.

    Keys: ``kind``, ``version``, ``machines`` (separated by spaces), ``image`` (relative to the directory),
    ``size`` (bytes), ``sha256`` (hex), ``abilities`` (separated by spaces, may be missing), and one ``module`` for
    each module in load order (relative). It is no JSON because importing a JSON parser would cost more than the rest
    of this module.

    Raises:
        KernelError: The file is missing or not of this form.
    """
    name = os.path.basename(directory)
    try:
        fd = os.open(os.path.join(directory, INFO), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(directory, f"its description cannot be read ({error.strerror})") from error
    try:
        text = os.fsdecode(os.read(fd, 1 << 20))
    finally:
        os.close(fd)
    lines = text.splitlines()
    if not lines or lines[0] != "cloche-kernel 1":
        raise _damaged(directory, "its description is of an unknown form")
    values: dict[str, str] = {}
    modules: list[str] = []
    for line in lines[1:]:
        key, _, value = line.partition(" ")
        if key == "module":
            modules.append(os.path.join(directory, value))
        else:
            values[key] = value
    try:
        return KernelInfo(
            id=name,
            kind=values["kind"],
            version=values["version"],
            machines=tuple(values["machines"].split()),
            image=os.path.join(directory, values["image"]),
            size_bytes=int(values["size"]),
            sha256=values["sha256"],
            modules=tuple(modules),
            directory=directory,
            abilities=tuple(values.get("abilities", "").split()),
        )
    except (KeyError, ValueError) as error:
        raise _damaged(directory, "its description is incomplete") from error


def host_kernel(boot: str = "/boot", lib: str = "/lib/modules") -> KernelInfo | None:
    """Return the kernel the host itself runs, if an ordinary user may read it and its modules are there.

    Distributions build virtio as modules; which ones it needs is worked out when its initramfs is made
    (``modules`` is empty here, see :func:`cloche.kernel.modules.needed_modules`).
    """
    release = os.uname().release
    image = os.path.join(boot, f"vmlinuz-{release}")
    if not os.access(image, os.R_OK) or not os.path.isdir(os.path.join(lib, release, "kernel")):
        return None
    return KernelInfo(
        id=f"host-{release}",
        kind=HOST,
        version=release,
        machines=("q35", "pc"),
        image=image,
        size_bytes=os.stat(image).st_size,
        sha256="",
        modules=(),
        directory="",
    )


def verify_kernel(kernel: KernelInfo) -> None:
    """Read the whole image and compare it with what was recorded.

    Raises:
        KernelError: It is not the same.
    """
    from hashlib import sha256

    check_image(kernel)
    if not kernel.sha256:
        return
    digest = sha256()
    with open(kernel.image, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != kernel.sha256:
        raise _damaged(kernel.directory or kernel.id, "its content has changed")


def find_damage(image: str) -> KernelError | None:
    """Return what is wrong with the stored kernel an image belongs to: for a machine that did not come up."""
    directory = os.path.dirname(image)
    if not os.path.exists(os.path.join(directory, INFO)):
        return None
    try:
        verify_kernel(read_info(directory))
    except KernelError as error:
        return error
    return None


def check_image(kernel: KernelInfo) -> None:
    """Look at an image's size and first bytes only: cheap enough for every start.

    Raises:
        KernelError: The image is missing, cut, or no kernel at all.
    """
    try:
        fd = os.open(kernel.image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            head = os.pread(fd, _BZIMAGE_OFFSET + len(_BZIMAGE), 0)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        # No path holds a nul byte (ValueError).
        reason = error.strerror if isinstance(error, OSError) else error
        raise _damaged(kernel.directory or kernel.id, f"its image cannot be read ({reason})") from error
    if size != kernel.size_bytes:
        raise _damaged(
            kernel.directory or kernel.id, f"its image has {size} bytes instead of {kernel.size_bytes}"
        )
    if not (head.startswith(_ELF) or head[_BZIMAGE_OFFSET:] == _BZIMAGE):
        raise _damaged(kernel.directory or kernel.id, "its image is no Linux kernel")


def remove_tree(path: str) -> None:
    """Delete a directory and all below it, following no link; ``shutil`` would cost its import."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)


def _checked(kernel: KernelInfo) -> KernelInfo:
    check_image(kernel)
    return kernel


def _load(path: str) -> KernelInfo:
    return read_info(path)


def _find_wanted(wanted: str) -> KernelInfo:
    if "/" in wanted:
        if not os.path.isdir(wanted):
            raise KernelError(
                f"there is no kernel's directory {wanted}",
                hint=f"'cloche kernel list' shows what there is; {HINT_GET}",
            )
        return read_info(os.path.abspath(wanted))
    kernels = list_kernels()
    same_kind = [kernel for kernel in kernels if kernel.kind == wanted]
    if same_kind:
        return same_kind[0]
    path = os.path.join(kernels_home(), wanted)
    if wanted != DEFAULT_LINK and not wanted.startswith(".") and os.path.isdir(path):
        return read_info(path)
    matching = [kernel for kernel in kernels if kernel.id.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise KernelError(f"kernel {wanted} is ambiguous: {_names(matching)}", hint="give more of its id")
    known = _names(kernels) if kernels else "none"
    raise KernelError(f"there is no kernel {wanted} (there is: {known})", hint=HINT_GET)


def _names(kernels: Iterable[KernelInfo]) -> str:
    return ", ".join(kernel.id for kernel in kernels)


def _damaged(directory: str, why: str) -> KernelError:
    name = os.path.basename(directory)
    stored = os.path.dirname(directory) == kernels_home()
    return KernelError(
        f"kernel {name} is damaged: {why}",
        hint=f"'cloche kernel remove {name}', then {HINT_GET}"
        if stored
        else f"Name another one, or {HINT_GET}.",
    )


def _unlink(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
