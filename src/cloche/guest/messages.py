"""Control messages and SETUP steps, to bytes and back (layer 3).

``protocol/README.md`` section 5. Each message is a record whose fields are in wire order; a table says how each
field is written. ``cloche.guest.session`` uses one direction of each, the golden vectors both.
"""

from __future__ import annotations

import struct

from cloche.errors import ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.model import guest as model
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.model.guest import Step

#: What stands in front of a message, and the greatest sizes of one (type and body), in bytes.
LENGTH_SIZE = 4
MAX_TO_AGENT = 4 << 20
MAX_TO_HOST = 64 << 10

FLAG_TTY = 1
FLAG_STRACE = 2
FLAG_LINGER = 4
_ALL_FLAGS = FLAG_TTY | FLAG_STRACE | FLAG_LINGER

KIND_STATUS = 0
KIND_SIGNAL = 1


class Setup(Record):
    """Do ``steps`` in order; the first failure ends it."""

    seq: int
    steps: tuple[Step, ...]


class Exec(Record):
    """Start a program.

    ``stdin``, ``stdout``, ``stderr`` are stream ids, 0 for /dev/null; ``pids_max`` 0: no limit; ``program`` is a file
    that is tried before ``argv[0]`` is searched for, empty for none; ``keys`` is the stream of what is typed when the
    terminal is not the program's stdin; ``ignored`` has bit N - 1 for signal N; ``nice`` is 0 to 19.
    """

    job: int
    stdin: int
    stdout: int
    stderr: int
    flags: int
    rows: int
    cols: int
    uid: int
    gid: int
    umask: int
    groups: tuple[int, ...]
    pids_max: int
    cwd: bytes
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    program: bytes = b""
    keys: int = 0
    ignored: int = 0
    nice: int = 0


class Signal(Record):
    """Send ``signo`` to a job."""

    job: int
    signo: int


class Resize(Record):
    """The job's terminal has a new size, in characters."""

    job: int
    rows: int
    cols: int


class Poweroff(Record):
    """Sync and power off."""


class Sync(Record):
    """Sync every writable file system, then answer."""

    seq: int


class Ready(Record):
    """The agent is up; sent once, at the first attach. ``uptime_ns`` is the guest's since boot."""

    agent_version: bytes
    kernel: bytes
    uptime_ns: int


class SetupDone(Record):
    """Every step of that SETUP was done."""

    seq: int


class SetupFailed(Record):
    """``step`` (counted from 0) failed with ``errno``; ``what`` is the agent's description, untrusted."""

    seq: int
    step: int
    errno: int
    what: bytes


class Started(Record):
    """The program runs; ``pid`` is the guest's."""

    job: int
    pid: int


class Failed(Record):
    """Nothing was started; the job's streams are forgotten by both sides without EOF."""

    job: int
    errno: int
    what: bytes


class Exited(Record):
    """The program ended: ``kind`` 0 with exit status ``value``, 1 by signal ``value``."""

    job: int
    kind: int
    value: int
    oom: int
    user_ns: int
    sys_ns: int
    maxrss_bytes: int


class Stopped(Record):
    """The job's foreground group was stopped."""

    job: int
    signo: int


class Continued(Record):
    """The job's foreground group goes on."""

    job: int


class Log(Record):
    """The agent's own words, untrusted; ``level`` 0 debug, 1 info, 2 warning, 3 error."""

    level: int
    text: bytes


class Synced(Record):
    """Answer to SYNC."""

    seq: int


# How a field is written: B H I Q integers of 1, 2, 4, 8 bytes, s bytes, i list<u32>, a list<bytes>, x list<step>.
_TO_AGENT: dict[int, tuple[type[Any], str]] = {
    1: (Setup, "Ix"),
    2: (Exec, "IIIIIHHIIIiIsaasIQB"),
    3: (Signal, "II"),
    4: (Resize, "IHH"),
    5: (Poweroff, ""),
    6: (Sync, "I"),
}
_TO_HOST: dict[int, tuple[type[Any], str]] = {
    65: (Ready, "ssQ"),
    66: (SetupDone, "I"),
    67: (SetupFailed, "IIIs"),
    68: (Started, "II"),
    69: (Failed, "IIs"),
    70: (Exited, "IBIBQQQ"),
    71: (Stopped, "II"),
    72: (Continued, "I"),
    73: (Log, "Bs"),
    74: (Synced, "I"),
}
_STEPS: dict[int, tuple[type[Any], str]] = {
    1: (model.BindDevice, "s"),
    2: (model.Mkdir, "sIII"),
    3: (model.Mount, "sssQs"),
    4: (model.SwitchRoot, "s"),
    5: (model.WriteFile, "sIIIs"),
    6: (model.MakeSymlink, "ss"),
    7: (model.CopyTree, "ssII"),
    8: (model.Hostname, "s"),
    9: (model.Clock, "Q"),
    10: (model.Entropy, "s"),
    11: (model.Loopback, ""),
    12: (model.Sysctl, "ss"),
    13: (model.Rlimit, "IQQ"),
    14: (model.WaitPath, "sI"),
    15: (model.Unmount, "sI"),
    16: (model.Interface, "sIII"),
    17: (model.Freeze, ""),
    18: (model.Thaw, ""),
    19: (model.CopyOnce, "ssII"),
    20: (model.Settle, "s"),
    21: (model.CheckPlace, "ss"),
    22: (model.PutFirst, "sIs"),
}
_MESSAGES = {**_TO_AGENT, **_TO_HOST}
_TYPE_OF = {kind: number for number, (kind, _) in _MESSAGES.items()}
_OP_OF = {kind: number for number, (kind, _) in _STEPS.items()}

ToAgent = Setup | Exec | Signal | Resize | Poweroff | Sync
ToHost = Ready | SetupDone | SetupFailed | Started | Failed | Exited | Stopped | Continued | Log | Synced
Message = ToAgent | ToHost


def _put_step(out: Writer, step: Step) -> None:
    op = _OP_OF[type(step)]
    body = Writer()
    _put_fields(body, _STEPS[op][1], step)
    out.u8(op)
    out.blob(body.finish())


def _get_step(data: Reader) -> Step:
    op = data.u8()
    body = Reader(data.blob())
    entry = _STEPS.get(op)
    if entry is None:
        raise ProtocolError(f"unknown setup step {op}")
    step: Step = entry[0](*_get_fields(body, entry[1]))
    body.end()
    return step


_PUT: dict[str, Callable[[Writer, Any], None]] = {
    "B": Writer.u8,
    "H": Writer.u16,
    "I": Writer.u32,
    "Q": Writer.u64,
    "s": Writer.blob,
    "i": lambda out, values: out.many(values, Writer.u32),
    "a": lambda out, values: out.many(values, Writer.blob),
    "x": lambda out, values: out.many(values, _put_step),
}
_GET: dict[str, Callable[[Reader], Any]] = {
    "B": Reader.u8,
    "H": Reader.u16,
    "I": Reader.u32,
    "Q": Reader.u64,
    "s": Reader.blob,
    "i": lambda data: tuple(data.many(4, Reader.u32)),
    "a": lambda data: tuple(data.many(4, Reader.blob)),
    "x": lambda data: tuple(data.many(5, _get_step)),
}


def _put_fields(out: Writer, layout: str, values: tuple[Any, ...]) -> None:
    for code, value in zip(layout, values, strict=True):
        _PUT[code](out, value)


def _get_fields(data: Reader, layout: str) -> list[Any]:
    return [_GET[code](data) for code in layout]


def encode(message: Message) -> bytes:
    """The message with its length in front, as it stands in stream 0 or 1.

    Raises ValueError when a value does not fit its field or the message is too long for its direction; the limit to
    the agent is 4 MiB, which a huge argument list or environment can pass.
    """
    number = _TYPE_OF[type(message)]
    out = Writer()
    out.u8(number)
    try:
        _put_fields(out, _MESSAGES[number][1], message)
    except struct.error as error:
        raise ValueError(f"{type(message).__name__} cannot be encoded: {error}") from error
    body = out.finish()
    limit = MAX_TO_AGENT if number in _TO_AGENT else MAX_TO_HOST
    if len(body) > limit:
        raise ValueError(f"{type(message).__name__} has {len(body)} bytes, {limit} is the limit")
    return len(body).to_bytes(LENGTH_SIZE, "little") + body


def _check(message: Message) -> None:
    """Refuse values the specification leaves no meaning for."""
    if isinstance(message, Exited):
        limit = 255 if message.kind == KIND_STATUS else 64
        if message.kind > KIND_SIGNAL or message.oom > 1 or message.value > limit:
            raise ProtocolError("an EXITED message holds impossible values")
    elif isinstance(message, Log):
        if message.level > 3:
            raise ProtocolError("a LOG message has an unknown level")
    elif isinstance(message, Exec) and (message.flags & ~_ALL_FLAGS or not message.argv):
        raise ProtocolError("an EXEC message has unknown flags or no program")


def decode(body: bytes | bytearray | memoryview, *, to_agent: bool = False) -> Message:
    """Decode type and body (without the length in front), of a message to the host unless ``to_agent``.

    Raises ProtocolError for everything malformed.
    """
    data = Reader(body)
    number = data.u8()
    entry = (_TO_AGENT if to_agent else _TO_HOST).get(number)
    if entry is None:
        raise ProtocolError(f"unknown control message {number}")
    message: Message = entry[0](*_get_fields(data, entry[1]))
    data.end()
    _check(message)
    return message
