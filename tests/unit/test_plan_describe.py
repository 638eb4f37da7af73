"""What --dry-run and --timings print."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.describe import describe_plan
from cloche.domain.timings import Mark, Timings
from cloche.drivers.registry import DRIVER_NAMES, find_driver
from cloche.model.request import Include
from support.plans import KERNEL, facts, request, share

if TYPE_CHECKING:
    from cloche.model.plan import LaunchPlan


def plan(*argv: bytes, driver: str = "qemu", **options: object) -> LaunchPlan:
    """Return the plan of a request with a share and a copy."""
    asked = request(
        *argv,
        shares=(share("/data"), share("/da ta", "/it's", writable=True)),
        includes=(Include("/f", "/tmp/f"),),
    )
    return find_driver(driver).plan(asked._replace(**options), facts(), KERNEL)  # type: ignore[arg-type]


def test_what_is_given_up_is_said() -> None:
    """A plan without a part of its jails says so; one with all of them says nothing of the kind."""
    text = describe_plan(plan(insecure=("namespaces",)))
    assert "\ninsecure    without the network, ipc, uts and cgroup namespaces\n" in text
    assert "insecure" not in describe_plan(plan())


@pytest.mark.parametrize("driver", DRIVER_NAMES)
def test_everything_that_starts_is_in_it(driver: str) -> None:
    """Every process with its arguments, jail and descriptors, every step, and the program are in the description."""
    made = plan(b"ls", b"-l", driver=driver)
    text = describe_plan(made)
    assert text.startswith(f"driver      {driver} ({made.isolation})\n")
    for process in made.processes:
        assert f"\nprocess     {process.name}" in text
        assert text.count(f" ({process.executable})\n") >= bool(process.executable)
        for word in process.argv:
            assert word.decode().replace("'", "\\'") in text
        for descriptor in process.descriptors:
            assert f"fd {descriptor.number:<4} {descriptor.endpoint} ({descriptor.side})" in text
    assert text.count("\n    root    ") == sum(len(process.jail.root) for process in made.processes)
    assert len(text.partition("\nguest\n")[2].partition("\ncommand\n")[0].splitlines()) == len(made.setup)
    assert "\n    argv    ls -l\n" in text
    assert "\n    user    1000:1000, umask 0022\n" in text
    assert "\n    env     HOME=/home/alice\n" in text
    if made.machine is not None:
        assert "microvm, tcg, 1 CPU, 1024 MiB" in text
        assert KERNEL.path in text


def test_flags_are_words() -> None:
    """Binds and mounts say what they are in words, a share that can be written to too."""
    text = describe_plan(plan())
    assert "bind /data /stage/0 read_only,nosuid,nodev,recursive" in text
    assert "bind '/da ta' /stage/1 nosuid,nodev,recursive" in text
    assert (
        r"mount '' '/run/cloche-shares/1' '/it\'s' bind,rec ''".replace(
            "'/run/cloche-shares/1'", "/run/cloche-shares/1"
        )
        in text
    )
    assert "rdonly,nosuid,nodev,remount,bind" in text
    assert "mount overlay cloche /cloche/root - lowerdir=" in text
    assert "flags=" not in text


def test_content_of_files_is_not_shown() -> None:
    """The guest's own files are named with their size only."""
    text = describe_plan(plan())
    assert "root:x:0:0" not in text
    assert "/etc/passwd 0644 (" in text


@given(
    st.lists(
        st.binary(min_size=1, max_size=20).map(lambda word: word.replace(b"\0", b"")), min_size=1, max_size=5
    )
)
def test_nothing_of_a_word_reaches_the_terminal_raw(words: list[bytes]) -> None:
    """Whatever the arguments hold, the description is printable lines, as many as for harmless words."""
    text = describe_plan(plan(*words))
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("\n") == describe_plan(plan(*[b"x"] * len(words))).count("\n")
    assert text.encode("utf-8")


def test_words_can_be_told_apart() -> None:
    """An empty word, one with blanks, quotes and backslashes, and a very long one are quoted without doubt."""
    text = describe_plan(plan(b"", b"a b", b"it's", b"\\'", b"\n", b"\xff"))
    assert "\n    argv    '' 'a b' 'it\\'s' '\\\\\\'' \\n \\xff\n" in text
    assert "x" * 4096 + "..." in describe_plan(plan(b"x" * 5000))
    many = describe_plan(plan(*[b"w"] * 100_000))
    assert "w w ... and 99936 more\n" in many
    assert len(many) < 100_000


def test_paths_that_are_not_text() -> None:
    """A kernel whose path is not UTF-8 can be described."""
    kernel = KERNEL._replace(path="/k\udcff", initrd="/i\x1b[2J")
    made = find_driver("qemu").plan(request(), facts(), kernel)
    text = describe_plan(made)
    assert "/k\\xff" in text
    assert "/i\\x1b[2J" in text


def test_marks_grow() -> None:
    """Marks are seconds since the process began, in order, and more than none."""
    timings = Timings()
    for name in ("a", "b", "c"):
        timings.mark(name)
    times = [mark.at_s for mark in timings.marks]
    assert [mark.name for mark in timings.marks] == ["a", "b", "c"]
    assert times == sorted(times)
    # The kernel tells the beginning in steps of 10 ms.
    assert -0.02 < times[0] < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_waterfall() -> None:
    """Each mark is one line: when, how long after the one before, and a bar from there to here."""
    timings = Timings()
    timings.marks = [Mark("start", 0.01), Mark("half", 0.05), Mark("same", 0.05), Mark("end", 0.1)]
    lines = timings.waterfall(width=10)
    assert lines == [
        "      10.0 ms  +      10.0  #           start",
        "      50.0 ms  +      40.0   ####       half",
        "      50.0 ms  +       0.0       #      same",
        "     100.0 ms  +      50.0       #####  end",
    ]


def test_a_waterfall_of_nothing() -> None:
    """Without marks there is nothing to show, and a mark at zero divides nothing by it."""
    timings = Timings()
    assert timings.waterfall() == []
    timings.marks = [Mark("now", 0.0)]
    assert len(timings.waterfall()) == 1


@given(st.lists(st.floats(0, 99_999), min_size=1, max_size=12).map(sorted), st.integers(1, 200))
def test_bars_stay_in_their_column(times: list[float], width: int) -> None:
    """However the times lie, names begin in the same column of every line."""
    timings = Timings()
    timings.marks = [Mark("name", at) for at in times]
    lines = timings.waterfall(width)
    assert {line.index("name") for line in lines} == {len("12345678.9 ms  +12345678.9  ") + width + 2}
