"""The undo log's golden bytes are what the host writes and reads; the disk's process reads the same file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cloche.host import undolog
from cloche.host.undolog import GivenUpError, Header, Saved

if TYPE_CHECKING:
    from pathlib import Path


def test_the_golden_bytes_are_read_and_written(project: Path, tmp_path: Path) -> None:
    """The header comes out as it went in, and each record says what stands beside it."""
    vectors = json.loads((project / "protocol/vectors/undo.json").read_text())
    said = vectors["header"]
    header = Header(
        *(
            said["disk"],
            said["started"],
            bytes.fromhex(said["boot"]),
            bytes.fromhex(said["ident"]),
            said["sealed"],
        )
    )
    assert undolog.encode_header(header).hex() == said["hex"]
    expected = []
    with open(tmp_path / "log", "w+b", buffering=0) as log:
        log.write(bytes.fromhex(said["hex"]))
        for record in vectors["records"]:
            log.write(bytes.fromhex(record["hex"]))
            expected.append(Saved(record["cluster"], record["mask"], log.tell()))
            log.write(bytes.fromhex(record["fill"]) * undolog.PAGE * record["mask"].bit_count())
        assert undolog.read_header(log.fileno()) == header
        assert list(undolog.records(log.fileno(), header, log.tell(), whole=True)) == expected
        os.pwrite(log.fileno(), bytes.fromhex(vectors["given_up"]), undolog.HEADER)
        with pytest.raises(GivenUpError):
            list(undolog.records(log.fileno(), header, log.tell(), whole=False))
