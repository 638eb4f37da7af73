"""Roots kept in archives (layer 5): a tar is unpacked once, by a guest, into an image that is kept in the cache.

A guest does it, and nobody else: it gives every file its owner, device and attributes, which an ordinary user of the
host could not, and whatever is wrong with the archive is wrong in there. The image is known by the content of the
archive, is made under another name, and is only read afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import os

from cloche import log
from cloche.domain.domain import Domain
from cloche.domain.prepare import prepare_plan
from cloche.errors import ClocheError, MountError
from cloche.host import xdg
from cloche.host.facts import collect_facts
from cloche.host.images import make_file_system
from cloche.host.paths import absolute
from cloche.host.reactor import Reactor
from cloche.host.roots import resolve_root
from cloche.host.text import escape_untrusted
from cloche.model.request import Disk, GuestMount, MountKind, RunRequest
from cloche.plan.roots import parse_root
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.guest.job import Job
    from cloche.model.request import Root

#: As large as an unpacked system may be; the image is sparse.
_SIZE = 32 << 30
_TAG, _PLACE = "mount.root", "/mnt/root"
#: What a file of the host begins with that tar(1) can read, at which place, and the option for it.
_KINDS = (
    (0, b"\x1f\x8b", "--gzip"),
    (0, b"\xfd7zXZ\0", "--xz"),
    (0, b"\x28\xb5\x2f\xfd", "--zstd"),
    (0, b"BZh", "--bzip2"),
    (257, b"ustar", ""),
)
_HEAD = 512
_PIECE = 1 << 20
_LAST_WORDS, _MOST_LINES = 300, 4
#: The end of the name of an image that is not whole yet.
_NEW = ".new"


def find_root(word: str) -> tuple[Root, tuple[Disk, ...]]:
    """Turn the argument of ``--root`` into a root and its disk; an archive is unpacked if it was not yet.

    Raises:
        UsageError: The word is malformed.
        ShareError, DiskError, MountError: It is not there, or may not be used, or cannot be unpacked.
    """
    read = parse_root(word)
    path = absolute(read.path)
    if not read.format and os.path.isfile(path):
        option = find_kind(path)
        if option is not None:
            return resolve_root(f"{ensure_image(path, option)},format=raw,fs=ext4")
    return resolve_root(word)


def find_kind(path: str) -> str | None:
    """Return the option by which tar(1) reads a file; None for one that is no archive.

    Raises:
        MountError: It cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise MountError(
            f"cannot read {path}: {error.strerror}", hint="Name a directory, an image or a tar archive."
        ) from None
    return next((option for at, magic, option in _KINDS if head[at : at + len(magic)] == magic), None)


def ensure_image(path: str, option: str) -> str:
    """Return the image with what is in an archive; it is made if there is none yet.

    Args:
        path: Of the archive.
        option: What ``find_kind`` said.

    Raises:
        MountError: The archive is damaged, or there is no room.
        ClocheError: The guest that unpacks it could not be started.
    """
    home = xdg.ensure_directory(os.path.join(xdg.cache_dir(), "roots"))
    try:
        with open(path, "rb", buffering=0) as archive:
            digest = _digest(archive.fileno(), home)
            image = os.path.join(home, f"{digest}.img")
            if os.path.exists(image):
                return image
            with open(os.path.join(home, ".lock"), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _sweep(home)
                if not os.path.exists(image):
                    _make(archive.fileno(), path, option, image)
            return image
    except OSError as error:
        raise MountError(
            f"cannot unpack {path} into {home}: {error.strerror}",
            hint="XDG_CACHE_HOME moves the cache to another place.",
        ) from None


def _digest(fd: int, home: str) -> str:
    """Return the hash of the archive's content, which is remembered for as long as nobody has changed the file."""
    found = os.fstat(fd)
    mark = f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
    known = os.path.join(home, f"{mark}.known")
    try:
        with open(known, encoding="ascii") as file:
            return file.read(64)
    except (OSError, ValueError):
        pass
    state = hashlib.sha256()
    while piece := os.read(fd, _PIECE):
        state.update(piece)
    os.lseek(fd, 0, os.SEEK_SET)
    with open(known, "w", encoding="ascii") as file:
        file.write(state.hexdigest())
    return state.hexdigest()


def _sweep(home: str) -> None:
    """Remove what a run that was killed had begun; whoever begins anything holds the lock."""
    for name in os.listdir(home):
        if name.endswith(_NEW):
            os.unlink(os.path.join(home, name))


def _make(archive: int, path: str, option: str, image: str) -> None:
    fresh = f"{image}{_NEW}"
    log.notice(f"{path} is unpacked by a guest, once")
    try:
        make_file_system(fresh, _SIZE)
        unpack(archive, path, option, fresh)
        os.chmod(fresh, 0o400)
        os.rename(fresh, image)
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)


def unpack(
    archive: int, path: str, option: str, image: str, *, size_bytes: int = _SIZE, below: str = ""
) -> None:
    """Have a guest unpack an archive into the file system of an image.

    Args:
        archive: The open archive.
        path: What it is called, for errors.
        option: What ``find_kind`` said.
        image: The image, with an ext4.
        size_bytes: How large that is.
        below: The directory of it that everything goes into; empty for its root.

    Raises:
        MountError: The archive is damaged, or there is no room.
        ClocheError: The guest could not be started.
    """
    place = f"{_PLACE}/{below}" if below else _PLACE
    words = ["tar", "--extract", "--file=-", f"--directory={place}", "--preserve-permissions"]
    words += ["--numeric-owner", "--xattrs", "--xattrs-include=*", *([option] if option else [])]
    if below:
        # What the archive says of its own root is not said of a directory that is there.
        words = ["sh", "-c", 'mkdir -p "$0" && exec "$@"', place, *words, "--no-overwrite-dir"]
    request = RunRequest(
        argv=tuple(word.encode() for word in words),
        disks=(Disk(_TAG, image, most_bytes=size_bytes),),
        mounts=(GuestMount(MountKind.HOST_IMAGE, _PLACE, _TAG, writable=True, fs="ext4"),),
        privileged=True,
        workdir="/",
    )
    over: list[ClocheError | None] = []
    jobs: list[Job] = []
    said = os.memfd_create("tar", os.MFD_CLOEXEC)
    try:
        with Reactor() as reactor:
            plan = prepare_plan(request, collect_facts())
            domain = Domain(reactor, plan)

            def opened() -> None:
                job = domain.execute(plan.command, stdin=archive, stderr=said)

                def ended(job: Job) -> None:
                    del job
                    # What was written is in the image before anybody looks at it.
                    domain.finish(lambda: over.append(None))

                job.on_done = ended
                jobs.append(job)

            domain.on_open = opened
            domain.on_end = over.append
            try:
                domain.start()
                reactor.run_until(lambda: bool(over))
            finally:
                domain.close()
        if over[0] is not None:
            raise over[0]
        if jobs[0].failure is not None or jobs[0].status != 0:
            lines = os.pread(said, 1 << 16, 0).splitlines() or [b"it says nothing"]
            raise MountError(
                f"{path} cannot be unpacked: tar ended with status {jobs[0].status}",
                detail=tuple(escape_untrusted(line, _LAST_WORDS) for line in lines[:_MOST_LINES]),
                hint="Is it whole, and a tar archive?",
            )
    finally:
        os.close(said)
