"""Whose a profile is at the moment (layer 3a): never two domains', also not on two hosts that share the directory.

Two locks and a note keep it so. The lock of the file ``lock`` (an open file description's, fcntl) is held by the
supervisor, and the kernel gives it back however that ends; the image itself is locked (flock) by whoever has it open,
which outlives the supervisor for a moment. File servers carry both to other hosts. Where one does not, the note in
``lock`` is left: host, boot and process, written before the disk is used and removed when it has been closed cleanly.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from stat import S_ISREG

from cloche.errors import ProfileError
from cloche.host import profiles
from cloche.host.aside import Aside
from cloche.host.profile_place import IMAGE, OUTDATED, REVERTING
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, TypeVar

    from cloche.host.undo import Begun

    T = TypeVar("T")

_LOCK = "lock"
#: Its being there keeps everybody from starting the profile.
SEALED = "locked"
#: struct flock: all of the file, for an open file description.
_WHOLE = struct.pack("hhqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_MOST_NOTE = 64 << 10
#: With less room than this where the profile is, writes of a guest have failed.
_FULL_BYTES = 4 << 20
#: How long the processes of a domain that has just ended may take to let go of the image, in seconds.
_LETTING_GO_S = 10.0


class Note(Record):
    """What whoever uses a profile has written down.

    Attributes:
        host: Which host it is on.
        boot: Which start of that host.
        pid: The supervisor's process.
        machine: What kind of machine it is, one line for each property.
        domain: The domain's identity, empty until it has one.
    """

    host: str
    boot: str
    pid: int
    machine: tuple[str, ...] = ()
    domain: str = ""


class BusyError(ProfileError):
    """Another domain has the profile. ``note`` is what it has written down, None when that is nothing yet."""

    def __init__(self, name: str, note: Note | None) -> None:
        domain = note.domain if note else ""
        # In a domain that runs by itself nothing is joined by `run -d`, so `exec` is what always does it.
        joins = f"`cloche exec {domain} CMD` joins it" if domain else f"`cloche -p {name} CMD` joins it"
        super().__init__(
            f"the profile {name} is in use" + (f" by the domain {domain}" if domain else ""),
            hint=f"{joins}, `cloche -t CMD` leaves profiles alone.",
        )
        self.note = note


class Hold:
    """A profile that is the caller's.

    Attributes:
        name: Its name.
        is_clean: Whether its disk was closed cleanly by whoever had it before.
    """

    def __init__(self, name: str, fd: int, *, is_clean: bool) -> None:
        """Take over the open, locked file."""
        self.name = name
        self.is_clean = is_clean
        self._fd = fd
        self._note: Note | None = None
        self._begun: Begun | None = None
        self._securing: Aside | None = None

    @classmethod
    def take(cls, name: str, *, sealed: bool = False) -> Self:
        """Take a profile.

        Args:
            name: Its name.
            sealed: Whether one that its owner has locked may be taken, too.

        Raises:
            BusyError: Somebody on this host has it.
            ProfileError: There is none, it is locked, or another host seems to use it.
        """
        directory = profiles.directory(name)
        path = os.path.join(directory, _LOCK)
        fd = _open(path, os.O_CREAT)
        try:
            note = _lock(name, fd, path)
            if not sealed:
                _check_open(directory, name)
            image = os.path.join(directory, IMAGE)
            _wait_for_image(image, name)
            if os.path.lexists(os.path.join(directory, *REVERTING)):
                from cloche.host.reverting import finish

                finish(directory, image)
        except BaseException:
            os.close(fd)
            raise
        return cls(name, fd, is_clean=note is None)

    def begin(self, machine: tuple[str, ...]) -> None:
        """Note that the disk is going to be used, by a machine of this kind. Not on the disk yet: see ``settle``.

        Raises:
            ProfileError: It cannot be written down.
        """
        host, boot = this_host()
        self._write(Note(host, boot, os.getpid(), machine))

    def began(self, domain: str) -> None:
        """Note which domain it is, and begin to bring that to the disk: see ``secured``.

        Raises:
            ProfileError: It cannot be written down.
        """
        assert self._note is not None
        self._write(self._note._replace(domain=domain, pid=os.getpid()))
        # The machine comes up meanwhile.
        self._securing = Aside(self._secure)

    def _secure(self) -> None:
        if self._begun is not None:
            from cloche.host.undo import secure

            secure(self._begun)
        os.fdatasync(self._fd)

    def secured(self) -> None:
        """Wait until a loss of power leaves what was noted; before the guest is told to mount the disk.

        Raises:
            ProfileError: The host's disk refuses.
        """
        if self._securing is None:
            return
        try:
            self._securing.wait()
        except OSError as error:
            raise ProfileError(
                f"cannot write to the profile {self.name}: {error.strerror}",
                hint="Free some space there, or use `cloche -t CMD`, which leaves profiles alone.",
            ) from None

    def keep(self, starts: int, room_bytes: int, argv: tuple[bytes, ...]) -> Begun | None:
        """Have what the disk holds now kept, so that one can go back to it; None when nothing is to be kept.

        Raises:
            ProfileError: There is no room for it.
        """
        from cloche.host.undo import begin

        directory = profiles.directory(self.name)
        size = os.stat(os.path.join(directory, IMAGE)).st_size
        self._begun = begin(directory, size, starts, room_bytes, argv)
        return self._begun

    def _seal(self) -> None:
        """Say in the log how much there must be of it, once nobody writes to it any more."""
        from cloche import log
        from cloche.host.undo import settle

        directory = profiles.directory(self.name)
        try:
            _wait_for_image(os.path.join(directory, IMAGE), self.name)
            problem = settle(directory)
        except (ProfileError, OSError) as error:
            problem = str(error)
        if problem:
            log.notice(f"this start of the profile {self.name} cannot be taken back: {problem}")

    def _forget_outdated(self) -> None:
        try:
            os.unlink(os.path.join(profiles.directory(self.name), OUTDATED))
        except OSError:
            pass  # mostly it is not there; what stays is looked at once more

    def _say_when_full(self) -> None:
        """A guest's programs hear of a broken file system, and only the host knows why."""
        from cloche import log

        status = os.statvfs(profiles.directory(self.name))
        if status.f_bavail * status.f_frsize < _FULL_BYTES:
            log.notice(
                f"the host's disk that holds the profile {self.name} is full: what its programs could not write is lost"
            )

    def _write(self, note: Note) -> None:
        self._note = note
        text = _format(note)
        try:
            # One write, behind which the rest of a longer one is cut off: who reads meanwhile sees whole lines.
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            raise ProfileError(
                f"cannot write to the profile {self.name}: {error.strerror}",
                hint="Free some space there, or use `cloche -t CMD`, which leaves profiles alone.",
            ) from None

    def release(self, *, is_clean: bool = False) -> None:
        """Let go of it. May be called twice.

        Args:
            is_clean: The disk was closed cleanly; else what was noted stays, and the next one has it checked.
        """
        if self._fd < 0:
            return
        if self._securing is not None:
            self._securing.settle()
        if self._begun is not None:
            self._seal()
            self._begun = None
        if self._note is not None:
            self._say_when_full()
        if is_clean or (self._note is None and self.is_clean):
            os.ftruncate(self._fd, 0)
        if is_clean and self._note is not None and self._note.domain:
            self._forget_outdated()
        # A child that the caller's program has forked would keep the lock.
        fcntl.fcntl(
            self._fd, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
        )
        os.close(self._fd)
        self._fd = -1


def _check_open(directory: str, name: str) -> None:
    if os.path.lexists(os.path.join(directory, SEALED)):
        raise ProfileError(
            f"the profile {name} is locked",
            hint=f"`cloche profile unlock {name}` opens it; `cloche -t CMD` leaves profiles alone.",
        )


def _lock(name: str, fd: int, path: str) -> Note | None:
    """Lock the file; return what somebody who did not close the disk cleanly has left in it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE)
    except BlockingIOError:
        raise _busy(name, _parse(fd)) from None
    except OSError as error:
        raise ProfileError(
            f"cannot lock {path}: {error.strerror}",
            hint="Keep profiles on a file system that has locks (XDG_DATA_HOME).",
        ) from None
    if os.fstat(fd).st_nlink == 0:
        raise ProfileError(f"the profile {name} has just been deleted")
    note = _parse(fd)
    if note is not None and note.host != this_host()[0]:
        raise _busy(name, note)
    return note


def _busy(name: str, note: Note | None) -> ProfileError:
    if note is None or note.host == this_host()[0]:
        return BusyError(name, note)
    host = note.host.rpartition("-")[0]
    return ProfileError(
        f"the profile {name} is in use on the host {host}, or was when that failed",
        hint=f"If it does not run there: cloche profile unlock {name}",
    )


def _open(path: str, more: int = 0) -> int:
    """Open the file with lock and note; a FIFO in its place is neither waited for nor asked where its end is."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | more, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror
    else:
        if S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        reason = "it is no file"
    raise ProfileError(
        f"cannot open {path}: {reason}", hint="See that it is a file, and that you may write to it."
    )


def read_note(name: str) -> Note | None:
    """Return what whoever has a profile has noted; None for nobody (who has it, and has noted nothing yet, too).

    Raises:
        ProfileError: There is no such profile.
    """
    return _look(name, _parse)


def is_held(name: str) -> bool:
    """Tell whether somebody has a profile at the moment.

    Raises:
        ProfileError: There is no such profile.
    """
    return bool(_look(name, _is_locked))


def _look(name: str, ask: Callable[[int], T]) -> T | None:
    """Ask something of the file with lock and note; None where there is none, as of a profile nobody has had."""
    try:
        fd = _open(os.path.join(profiles.directory(name), _LOCK))
    except FileNotFoundError:
        return None
    try:
        return ask(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    # Asked and never taken: whoever wants the profile at this moment would find it in use.
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE)
    kind: int = struct.unpack_from("h", found)[0]
    return kind != fcntl.F_UNLCK


def forget_other_host(name: str) -> None:
    """Forget that another host had a profile: it is known not to use it any more. Its disk is checked next time.

    Raises:
        ProfileError: There is no such profile, or somebody has it at the moment.
    """
    path = os.path.join(profiles.directory(name), _LOCK)
    fd = _open(path, os.O_CREAT)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE)
        note = _parse(fd)
        if note is not None:
            host, boot = this_host()
            os.ftruncate(fd, 0)
            os.pwrite(fd, _format(note._replace(host=host, boot=boot)), 0)
    except BlockingIOError:
        raise BusyError(name, None) from None
    finally:
        os.close(fd)


def _format(note: Note) -> bytes:
    lines = (note.host, note.boot, str(note.pid), note.domain, *note.machine, "")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _parse(fd: int) -> Note | None:
    lines = os.pread(fd, _MOST_NOTE, 0).decode("utf-8", "surrogateescape").split("\n")
    if len(lines) < 5 or not lines[2].isdigit():
        return None
    return Note(lines[0], lines[1], int(lines[2]), tuple(lines[4:-1]), lines[3])


def _wait_for_image(path: str, name: str) -> None:
    """Wait until the processes of the domain before have let go of the disk: they outlive their supervisor."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # The kernel wakes it, and nobody else can be told how long it may take.
        if not Aside(lambda: _lock_and_close(fd)).settle(_LETTING_GO_S):
            raise BusyError(name, None) from None
    else:
        os.close(fd)


def _lock_and_close(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def this_host() -> tuple[str, str]:
    """Return a word for this host, and one for this start of it."""
    try:
        with open("/etc/machine-id", "rb") as file:
            ident = file.read(64)
    except OSError:
        ident = b""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot = file.read(64).decode("ascii", "replace").strip()
    return f"{os.uname().nodename}-{zlib.crc32(ident):08x}", boot
