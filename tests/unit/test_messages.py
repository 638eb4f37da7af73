"""Control messages: round trips, limits, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import ProtocolError
from cloche.guest import messages as m
from cloche.model import guest as model

U32 = st.integers(0, 2**32 - 1)
WORDS = st.lists(st.binary(max_size=20), max_size=5).map(tuple)
STEPS: tuple[model.Step, ...] = (
    model.BindDevice(b"virtio-mmio.6"),
    model.Mkdir(b"/home/u", 0o700, 1000, 1000),
    model.Mount(b"tmpfs", b"none", b"/tmp", 6, b"mode=1777"),
    model.SwitchRoot(b"/sysroot"),
    model.WriteFile(b"/etc/passwd", 0o644, 0, 0, b"root:x:0:0\n"),
    model.MakeSymlink(b"usr/bin", b"/bin"),
    model.CopyTree(b"/etc/skel", b"/home/u", 1000, 1000),
    model.Hostname(b"cloche"),
    model.Clock(1_700_000_000_000_000_000),
    model.Entropy(b"seed"),
    model.Loopback(),
    model.Sysctl(b"kernel/printk", b"1"),
    model.Rlimit(7, 1024, 2**64 - 1),
    model.WaitPath(b"/dev/vda", 5000),
    model.Unmount(b"/srv", 8),
    model.Interface(b"eth0", 0x0A00020F, 24, 0x0A000202),
    model.Freeze(),
    model.Thaw(),
    model.CopyOnce(b"/home/u", b"/disk/home/u", 1000, 1000),
    model.Settle(b"/disk"),
    model.CheckPlace(b"/srv/data", b"a/b"),
    model.PutFirst(b"/etc/passwd", 0o644, b"me:x:1000:1000::/home/me:/bin/sh\n"),
)
TO_HOST: tuple[m.ToHost, ...] = (
    m.Ready(b"0.1.0", b"6.12.0", 10**9),
    m.SetupDone(1),
    m.SetupFailed(1, 3, 2, b"mount /tmp"),
    m.Started(1, 42),
    m.Failed(1, 2, b"exec x"),
    m.Exited(1, 1, 9, 1, 10, 20, 30),
    m.Stopped(1, 20),
    m.Continued(1),
    m.Log(3, b"text"),
    m.Synced(4),
)


def body(message: m.Message) -> bytes:
    """The message without its length, which is checked."""
    encoded = m.encode(message)
    assert int.from_bytes(encoded[:4], "little") == len(encoded) - 4
    return encoded[4:]


def test_every_step_round_trips() -> None:
    """SETUP with one step of each kind decodes to itself."""
    message = m.Setup(7, STEPS)
    assert m.decode(body(message), to_agent=True) == message
    assert len(STEPS) == len(m._STEPS)


@pytest.mark.parametrize("message", TO_HOST, ids=lambda message: type(message).__name__)
def test_messages_to_the_host_round_trip(message: m.ToHost) -> None:
    """Each message to the host decodes to itself, and no prefix of it decodes at all."""
    encoded = body(message)
    assert m.decode(encoded) == message
    for size in range(len(encoded)):
        with pytest.raises(ProtocolError):
            m.decode(encoded[:size])
    with pytest.raises(ProtocolError):
        m.decode(encoded + b"\0")
    with pytest.raises(ProtocolError):
        m.decode(encoded, to_agent=True)


@pytest.mark.parametrize("message", [m.Signal(1, 15), m.Resize(1, 24, 80), m.Poweroff(), m.Sync(3)])
def test_short_messages_to_the_agent_round_trip(message: m.ToAgent) -> None:
    """Each short message to the agent decodes to itself, and only in that direction."""
    assert m.decode(body(message), to_agent=True) == message
    with pytest.raises(ProtocolError):
        m.decode(body(message))


@given(
    WORDS.filter(bool), WORDS, st.lists(U32, max_size=4).map(tuple), st.integers(0, 7), st.binary(max_size=20)
)
def test_exec_round_trips(
    argv: tuple[bytes, ...], env: tuple[bytes, ...], groups: tuple[int, ...], flags: int, program: bytes
) -> None:
    """EXEC keeps any bytes in arguments and environment."""
    message = m.Exec(1, 2, 3, 5, flags, 24, 80, len(argv), 0, 0o22, groups, 0, b"/tmp", argv, env, program)
    assert m.decode(body(message), to_agent=True) == message


@given(st.binary(max_size=100))
def test_noise_is_refused_or_canonical(noise: bytes) -> None:
    """Bytes that are not a message raise ProtocolError and nothing else; those that are encode to themselves."""
    try:
        message = m.decode(noise)
    except ProtocolError:
        return
    assert body(message) == noise


@given(st.sampled_from([*TO_HOST, m.Setup(7, STEPS), m.Sync(3)]), st.data())
def test_a_damaged_message_is_refused_or_canonical(message: m.Message, data: st.DataObject) -> None:
    """A message of any kind with some bytes changed, cut out or put in is refused, or is another whole message."""
    damaged = bytearray(body(message))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(damaged)))
        damaged[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    for to_agent in (False, True):
        try:
            found = m.decode(damaged, to_agent=to_agent)
        except ProtocolError:
            continue
        assert body(found) == damaged


@pytest.mark.parametrize(
    "message",
    [m.Exited(1, 2, 0, 0, 0, 0, 0), m.Exited(1, 0, 256, 0, 0, 0, 0), m.Exited(1, 1, 65, 0, 0, 0, 0),
     m.Exited(1, 0, 0, 2, 0, 0, 0), m.Log(4, b"")],
)  # fmt: skip
def test_impossible_values_are_refused(message: m.Message) -> None:
    """Values without a meaning are refused."""
    with pytest.raises(ProtocolError):
        m.decode(body(message))


def test_a_huge_environment_is_refused_here() -> None:
    """An EXEC beyond 4 MiB is the caller's mistake, told before anything is sent."""
    message = m.Exec(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, (), 0, b"/", (b"x",), (b"A=" + bytes(4 << 20),))
    with pytest.raises(ValueError, match="limit"):
        m.encode(message)


def test_a_hundred_thousand_arguments_fit() -> None:
    """The longest argument list people use is within the limit."""
    argv = tuple(b"%d" % number for number in range(100_000))
    message = m.Exec(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, (), 0, b"/", argv, ())
    assert m.decode(body(message), to_agent=True) == message
