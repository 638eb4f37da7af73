"""The golden vectors of the channel, which the Rust tests read, too: frames and control messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from cloche.errors import ProtocolError
from cloche.guest import messages, wire
from cloche.model import guest as model

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import Message

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
#: Where the specification's names are not those of the classes.
OPS: dict[type, str] = {model.MakeSymlink: "SYMLINK"}
FIELDS: dict[tuple[type, str], str] = {(model.CopyTree, "source"): "from", (model.CopyOnce, "source"): "from"}

Fields = dict[str, Any]
Vector = tuple[str, bytes, Fields]


def load(name: str) -> list[Vector]:
    """The vectors of a file: name, bytes, meaning."""
    items = json.loads((VECTORS / name).read_text())
    return [(item["name"], bytes.fromhex(item["hex"]), item["fields"]) for item in items]


def spell(class_name: str) -> str:
    """``SetupDone`` as the specification writes it: SETUP_DONE."""
    return "".join("_" + char if char.isupper() else char for char in class_name).strip("_").upper()


def plain(value: object) -> object:
    """A field as the vectors have it."""
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "_fields"):
        return {"op": OPS.get(type(value)) or spell(type(value).__name__), **record_fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def record_fields(record: Any) -> Fields:
    """The fields of a message or step."""
    fields: Fields = {}
    for name, value in zip(record._fields, record, strict=True):
        word = str(name)
        fields[FIELDS.get((type(record), word), word)] = plain(value)
    return fields


def read_message(data: bytes) -> tuple[Fields, bytes]:
    """What a control message says, and its bytes made anew."""
    if int.from_bytes(data[:4], "little") != len(data) - 4:
        raise ProtocolError("the length is wrong")
    message: Message = messages.decode(data[4:], to_agent=data[4] < 64)
    return {"type": spell(type(message).__name__), **record_fields(message)}, messages.encode(message)


def read_table(table: tuple[wire.TableRow, ...]) -> list[Fields]:
    """The rows of an attach."""
    return [record_fields(row) for row in table]


def read_attach(payload: bytes) -> tuple[Fields, bytes]:
    """What an ATTACH says."""
    attach = wire.decode_attach(payload)
    fields = {"version": attach.version, "nonce": attach.nonce.decode(), "table": read_table(attach.table)}
    return fields, wire.encode_attach(attach)


def read_attached(payload: bytes) -> tuple[Fields, bytes]:
    """What an ATTACHED says."""
    attached = wire.decode_attached(payload)
    fields = {
        "version": attached.version,
        "session": attached.session.decode(),
        "fresh": int(attached.fresh),
        "table": read_table(attached.table),
    }
    return fields, wire.encode_attached(attached)


def read_numbers(*names: str) -> Callable[[bytes], tuple[Fields, bytes]]:
    """Reads a payload of some u64, then bytes where a name is ``bytes``."""

    def read(payload: bytes) -> tuple[Fields, bytes]:
        fields: Fields = {}
        rest = payload
        for name in names:
            if name == "bytes":
                fields[name] = rest.hex()
            else:
                fields[name], rest = int.from_bytes(rest[:8], "little"), rest[8:]
        return fields, payload

    return read


PAYLOADS = {
    wire.ATTACH: ("ATTACH", read_attach),
    wire.ATTACHED: ("ATTACHED", read_attached),
    wire.DATA: ("DATA", read_numbers("offset", "bytes")),
    wire.WINDOW: ("WINDOW", read_numbers("consumed", "limit")),
    wire.EOF: ("EOF", read_numbers("final")),
    wire.STOP: ("STOP", read_numbers()),
}


def read_frame(data: bytes) -> tuple[Fields, bytes]:
    """What a frame or a preface says, and its bytes made anew."""
    if data.startswith(wire.PREFACE_MAGIC) and len(data) == wire.PREFACE_SIZE:
        key = data[len(wire.PREFACE_MAGIC) :]
        return {"type": "PREFACE", "key": key.decode("latin-1")}, wire.preface(key)
    kind, flags, stream, length = wire.read_header(data, 0)
    if len(data) != length + wire.FRAME_OVERHEAD or data[-1:] != wire.TRAILER:
        raise ProtocolError("the frame does not end where it should")
    name, read = PAYLOADS[kind]
    fields, payload = read(data[wire.HEADER_SIZE : -1])
    return {"type": name, "flags": flags, "stream": stream, **fields}, wire.frame(
        kind, stream, payload, flags
    )


READERS = {"frames.json": read_frame, "messages.json": read_message}
CASES = [
    pytest.param(READERS[file], *vector, id=f"{file}: {vector[0]}")
    for file in READERS
    for vector in load(file)
]


@pytest.mark.parametrize("read, name, data, fields", CASES)
def test_vector(
    read: Callable[[bytes], tuple[Fields, bytes]], name: str, data: bytes, fields: Fields
) -> None:
    """The golden bytes mean what the vector says, and the same is encoded to the same bytes."""
    said, again = read(data)
    if fields["type"] in {"ATTACH", "ATTACHED"} and fields["version"] != wire.VERSION:
        assert said["version"] == fields["version"]  # of another version only the number counts
        return
    assert said == fields
    assert again == data


@pytest.mark.parametrize("read, name, data, fields", CASES)
def test_a_changed_byte_is_noticed(
    read: Callable[[bytes], tuple[Fields, bytes]], name: str, data: bytes, fields: Fields
) -> None:
    """Any one byte changed is refused or means something else: every byte of the vectors counts."""
    if cast("int", fields.get("version", wire.VERSION)) != wire.VERSION:
        return
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= change
            try:
                said, _ = read(bytes(changed))
            except ProtocolError:
                continue
            assert said != fields, f"byte {position}"


def test_every_message_and_step_has_a_vector() -> None:
    """No message, step or frame type is without golden bytes."""
    seen = {str(fields["type"]) for file in READERS for _, _, fields in load(file)}
    steps = {step["op"] for _, _, fields in load("messages.json") for step in fields.get("steps", [])}
    assert seen == {spell(kind.__name__) for kind, _ in messages._MESSAGES.values()} | {
        name for name, _ in PAYLOADS.values()
    } | {"PREFACE"}
    assert steps == {OPS.get(kind) or spell(kind.__name__) for kind, _ in messages._STEPS.values()}
