"""The log of a detached program: bounded, read while it is written, whole after a kill; and what is kept of its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from cloche.host import records
from cloche.host.outlog import LOG, OLDER, STDERR, STDOUT, Entry, LogWriter, read_log

if TYPE_CHECKING:
    import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"


def texts(entries: list[Entry]) -> bytes:
    """Return what was written, one after the other."""
    return b"".join(entry.data for entry in entries)


def test_streams_are_told_apart_and_bytes_kept(tmp_path: Path) -> None:
    """Any bytes come back, of each stream, in their order and with a time that does not fall."""
    log = LogWriter(str(tmp_path), 1 << 20)
    log.write(STDOUT, b"out\n\0\xff")
    log.write(STDERR, b"err")
    log.write(STDOUT, b"")
    log.write(STDOUT, b"more")
    log.close()
    entries = list(read_log(str(tmp_path)))
    assert [(one.stream, one.data) for one in entries] == [(1, b"out\n\0\xff"), (2, b"err"), (1, b"more")]
    assert [one.time_ns for one in entries] == sorted(one.time_ns for one in entries)
    assert entries[-1].position == log.position


def test_the_size_is_bounded_and_the_end_is_kept(tmp_path: Path) -> None:
    """The oldest half goes; what is left is the end, without a gap."""
    log = LogWriter(str(tmp_path), 8192)
    for number in range(5000):
        log.write(STDOUT, b"%08d\n" % number)
        if number % 100 == 0:
            size = sum((tmp_path / name).stat().st_size for name in os.listdir(tmp_path))
            assert size <= 8192 + 2 * 64
    lines = texts(list(read_log(str(tmp_path)))).split()
    assert lines == [b"%08d" % number for number in range(5000 - len(lines), 5000)]
    assert len(lines) > 100
    assert set(os.listdir(tmp_path)) == {LOG, OLDER}


def test_a_reader_that_goes_on_misses_nothing_and_reads_nothing_twice(tmp_path: Path) -> None:
    """Whatever the log does in between, as long as it is read often enough."""
    log = LogWriter(str(tmp_path), 8192)
    read, position = b"", 0
    for number in range(2000):
        log.write(STDOUT, b"%08d\n" % number)
        if number % 37 == 0:
            for entry in read_log(str(tmp_path), position):
                read, position = read + entry.data, entry.position
    for entry in read_log(str(tmp_path), position):
        read += entry.data
    assert read == b"".join(b"%08d\n" % number for number in range(2000))


@given(st.integers(0, 400))
def test_a_log_that_was_cut_reads_up_to_there(cut: int) -> None:
    """A writer killed in the middle of a record leaves all records before it."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        log = LogWriter(directory, 1 << 20)
        for number in range(10):
            log.write(STDOUT, b"record %d\n" % number)
        log.close()
        path = os.path.join(directory, LOG)
        os.truncate(path, min(cut, os.path.getsize(path)))
        read = texts(list(read_log(directory)))
    whole = b"".join(b"record %d\n" % number for number in range(10))
    assert whole.startswith(read)
    assert len(read) % len(b"record 0\n") == 0


def test_a_record_there_is_no_room_for_leaves_nothing(tmp_path: Path) -> None:
    """Half of it would hide what comes later: a limit of the file's size stops it in the middle, and then no more."""
    program = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from cloche.host.outlog import LogWriter, read_log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = LogWriter(sys.argv[2], 1 << 20)
log.write(1, b"first")
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
try:
    log.write(1, b"x" * 5000)
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.write(1, b"last")
print([entry.data for entry in read_log(sys.argv[2])])
"""
    argv = [sys.executable, "-c", program, str(SOURCE), str(tmp_path)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["27", "[b'first', b'last']"]


def test_records_are_few_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of those that have ended are forgotten; those that run, and names of any bytes, stay."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    kept = records.Kept("", "", (), 0.0)
    for number in range(records.MOST + 10):
        kept = records.Kept(f"{number:012x}", "web", (b"prog", b"\xff\n"), float(number))
        records.create(kept)
        LogWriter(kept.directory, 4096).close()
    assert records.read(f"{3:012x}") == records.Kept(f"{3:012x}", "web", (b"prog", b"\xff\n"), 3.0)
    records.prune(frozenset({f"{0:012x}"}))
    left = [kept.ident for kept in records.read_all()]
    assert left == [f"{0:012x}", *(f"{number:012x}" for number in range(10, records.MOST + 10))]
    records.remove(left[0])
    records.remove(left[0])
    assert records.read(left[0]) is None
    assert not os.path.exists(kept._replace(ident=left[0]).directory)
