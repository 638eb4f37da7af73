"""The benchmarks' arithmetic, tables, command lines and readers; nothing is measured here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import (  # noqa: E402 - see above
    devices,
    goals,
    machines,
    memory,
    plot,
    report,
    rounds,
    samples,
    timings,
    workload,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VMM = [
    *("/usr/bin/qemu", "-nodefaults", "-machine", "microvm,acpi=off,isa-serial=on,memory-backend=memory"),
    *("-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "256M", "-object", "memory-backend-memfd,id=memory"),
    *("-kernel", "/boot/kernel", "-initrd", "/boot/initrd"),
    *("-append", "panic=-1 console=ttyS0 quiet rdinit=/init", "-device", "virtio-serial-device"),
]


@pytest.mark.parametrize("fraction, expected", [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)])
def test_quantiles_lie_between_neighbours(fraction: float, expected: float) -> None:
    """A quantile is interpolated between the values beside it, whatever their order."""
    assert samples.quantile([5, 1, 4, 2, 3], fraction) == pytest.approx(expected)


@pytest.mark.parametrize("values, fraction", [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_impossible_quantiles_are_refused(values: list[float], fraction: float) -> None:
    """No values, or a fraction outside 0 to 1, is an error."""
    with pytest.raises(ValueError, match="quantile"):
        samples.quantile(values, fraction)


def test_ratio_is_of_medians_and_may_be_missing() -> None:
    """A ratio is that of two medians, and None when one candidate or metric was not measured."""
    measured: samples.Samples = {"a": {"wall": [1, 2, 9]}, "b": {"wall": [4, 4, 4]}}
    assert samples.paired_ratio(measured, "a", "b", "wall") == 0.5
    assert samples.paired_ratio(measured, "a", "c", "wall") is None
    assert samples.paired_ratio(measured, "a", "b", "cpu") is None


def counting(log: list[str], name: str) -> Callable[[], dict[str, float]]:
    """Return a measurement that notes that it was made."""

    def measure() -> dict[str, float]:
        log.append(name)
        return {"n": float(len(log))}

    return measure


def test_candidates_take_turns() -> None:
    """Each round measures everybody, begins with another one, and the first round is not counted."""
    log: list[str] = []
    candidates = [rounds.Candidate(name, counting(log, name)) for name in "abc"]
    outcome = rounds.take_turns(candidates, 3, 60)
    assert log == list("cab" + "abc" + "bca" + "cab")
    assert {name: len(metrics["n"]) for name, metrics in outcome.samples.items()} == dict.fromkeys("abc", 3)


def test_slow_candidates_take_part_less_often() -> None:
    """A candidate with ``every`` is measured in the first of so many rounds, and needs no warming up."""
    log: list[str] = []
    candidates = [rounds.Candidate("a", counting(log, "a")), rounds.Candidate("b", counting(log, "b"), 2)]
    rounds.take_turns(candidates, 4, 60)
    assert log.count("a") == 5
    assert log.count("b") == 2


def test_used_up_time_ends_the_rounds_but_measures_all_once() -> None:
    """Without time left every candidate is still measured once."""
    log: list[str] = []
    rounds.take_turns([rounds.Candidate(name, counting(log, name)) for name in "ab"], 9, 0, warm_up=False)
    assert log == ["a", "b"]


def test_a_failing_candidate_is_named_and_left_out() -> None:
    """A candidate that fails is not tried again, its reason is kept, and the others go on."""

    def fail() -> dict[str, float]:
        raise rounds.MeasureError("broken")

    log: list[str] = []
    candidates = [rounds.Candidate("bad", fail), rounds.Candidate("good", counting(log, "good"))]
    outcome = rounds.take_turns(candidates, 2, 60)
    assert outcome.failures == {"bad": "broken"}
    assert len(outcome.samples["good"]["n"]) == 2


def test_a_run_is_timed_and_its_status_checked() -> None:
    """A program that ends well gives seconds; another status, or no program, is an error with the reason."""
    assert rounds.run_to_exit(["true"])["wall"] > 0
    assert rounds.run_to_exit(["false"], statuses=(1,))["cpu"] >= 0
    with pytest.raises(rounds.MeasureError, match="status 3: oh"):
        rounds.run_to_exit(["sh", "-c", "echo oh >&2; exit 3"])
    with pytest.raises(rounds.MeasureError, match="cannot start"):
        rounds.run_to_exit(["/nowhere/at/all"])


def test_raw_machine_is_cloches_without_devices() -> None:
    """Raw QEMU has cloche's machine, CPU, memory and kernel parameters, a 9p root, and nothing else of cloche's."""
    computer = machines.computer_of(VMM, "/usr/bin/qemu", "/k/vmlinux", 256)
    argv = machines.raw_qemu(computer, "/bin/true")
    assert argv[argv.index("-machine") + 1] == "microvm,acpi=off,isa-serial=off"
    assert argv[argv.index("-m") + 1] == "256M"
    assert argv[argv.index("-kernel") + 1] == "/k/vmlinux"
    words = argv[argv.index("-append") + 1].split()
    assert words[:2] == ["panic=-1", "quiet"]
    assert words[-1] == "init=/bin/true"
    assert not {"-object", "-initrd"} & set(argv)
    assert argv.count("-device") == 1


def test_raw_machine_can_speak_and_keep_its_memory_in_a_file() -> None:
    """With a console there is a serial port; with shared memory there is a memory back end; init has its arguments."""
    computer = machines.computer_of(VMM, "/usr/bin/qemu", "/k/vmlinux", 256)
    argv = machines.raw_qemu(computer, '/bin/sh -c "echo hi"', console=True, shared_memory=True)
    assert argv[argv.index("-machine") + 1] == "microvm,acpi=off,isa-serial=on,memory-backend=memory"
    assert argv[argv.index("-append") + 1].endswith('init=/bin/sh -c "echo hi"')
    assert "memory-backend-file,id=memory,size=256M,share=on,mem-path=/dev/shm,align=2M" in argv


def test_virtme_ng_gets_a_microvm() -> None:
    """The machine and the bus of every device are replaced, the watchdog and the screen go, all else stays in order."""
    given = (
        "-name x -device i6300esb,id=w -machine q35 -cpu max -vga none -device virtio-9p-pci,fsdev=f "
        "-device virtio-serial-pci -device virtserialport,name=v -kernel k -append a"
    )
    assert machines.to_microvm(given.split()) == [
        *("-nodefaults", "-no-user-config", "-name", "x"),
        *("-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on", "-cpu", "max"),
        *("-device", "virtio-9p-device,fsdev=f", "-device", "virtio-serial-device"),
        *("-device", "virtserialport,name=v", "-kernel", "k", "-append", "a 8250.nr_uarts=1"),
    ]


def test_waterfall_is_read() -> None:
    """The host's share is what comes before the processes are sent off and after the program's end."""
    said = (
        "cloche:     34.7 ms  +   34.7  #             python\n"
        "another line\n"
        "cloche:     45.0 ms  +    0.3   #            processes sent off\n"
        "cloche:    900.0 ms  +  855.0    #########   program ended\n"
        "cloche:    920.5 ms  +   20.5            #   ended\n"
    )
    assert timings.parse(said)["host's share"] == pytest.approx(65.5)
    assert timings.parse(said)["python"] == 34.7


def test_incomplete_waterfall_is_refused() -> None:
    """Without the marks that make the share there is no share."""
    with pytest.raises(rounds.MeasureError, match="processes sent off"):
        timings.parse("cloche:     34.7 ms  +   34.7  #  python\n")


def test_guest_memory_is_told_by_its_name() -> None:
    """PSS is summed for the file of the guest's memory and for all other mappings, with and without a path."""
    smaps = (
        "7f00-7f10 rw-s 00000000 00:01 7 /dev/shm/qemu_back_mem.memory.0a1b2c (deleted)\n"
        "Rss: 9 kB\nPss: 100 kB\nPss_Dirty: 5 kB\n"
        "7f10-7f20 rw-s 00000000 00:31 2 /memory/ram\nPss: 7 kB\n"
        "5500-5510 r-xp 00000000 08:01 9 /usr/bin/qemu\nPss: 20 kB\n"
        "7f20-7f30 rw-p 00000000 00:00 0 \nPss: 3 kB\nVmFlags: rd wr\n"
    )
    assert memory.split_pss(smaps) == (107, 23)


def test_own_family_is_found() -> None:
    """A running program, ready to be looked at, is found with its children and has memory."""
    with memory.running(["sh", "-c", "sh -c 'exec cat'; exit"]) as process:
        assert process.stdin is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        memory.wait_until_ready(process)  # it comes back from the program that is looked for
        found = memory.family(process.pid)
    assert sorted(one.name for one in found) == ["cat", "sh"]
    assert all(one.private_mib > 0 for one in found)


def test_workload_is_chosen_from_what_is_there(tmp_path: Path) -> None:
    """The smallest big enough tree, the first small files outside it, and the largest program are chosen."""
    for name, count in (("share/big", 30), ("share/fit", 12), ("share/tiny", 2), ("include", 3)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / name / f"file{number:02}").write_bytes(b"x" * 10)
    (tmp_path / "include" / "odd name").write_bytes(b"y")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"z" * 5000)
    (tmp_path / "bin" / "tool2").write_bytes(b"z" * 6000)
    work = workload.choose(10, 4, 5, 100, usr=str(tmp_path))
    assert (work.tree, work.entries) == (str(tmp_path / "share/fit"), 13)
    assert [Path(path).name for path in work.small] == ["tool", "tool2", "file00", "file01"]
    assert work.small_bytes == 11020
    assert (Path(work.large).name, work.large_bytes) == ("tool2", 6000)


def test_script_fits_into_a_kernel_command_line() -> None:
    """The guests' script marks every step and leaves room on the 2048 bytes virtme-ng has, in base64."""
    work = workload.Workload("/usr/share/doc", 9, ("/usr/a",), 1, "/usr/bin/large", 2, 3, 4)
    text = workload.script(work, "end")
    assert [f"@{number}" in text for number in range(8)] == [True] * 7 + [False]
    assert text.endswith(";cat;end")
    assert len(text) < 600


def test_goals_are_judged() -> None:
    """A goal is reached at its limit, missed beyond it, and not measured without a figure."""
    assert goals.Goal("g", 4.0, 4.0, "times").verdict == "reached"
    assert goals.Goal("g", 4.1, 4.0, "times").verdict == "missed"
    assert goals.Goal("g", 0.9, 1.0, "times", least=True).verdict == "missed"
    assert {goal.verdict for goal in goals.judge({})} == {"not measured"}


def test_tables_show_median_spread_ratio_and_failures() -> None:
    """A group's table has a line for each candidate, ratios to the base, and the reasons of failures."""
    outcome = rounds.Outcome({"a": {"wall": [0.002]}, "b": {"wall": [0.004, 0.006]}}, {"c": "no | luck"})
    group = report.Group("g", "Title", (report.Column("wall", "ms", 1000),), outcome, "a")
    assert report.group_table(group).splitlines()[2:] == [
        "|  | ms | to a | runs |",
        "|---|---|---|---|",
        "| a | 2.0 | 1.00 | 1 |",
        "| b | 5.0 (4.2 to 5.8) | 2.50 | 2 |",
        "| c | failed: no \\| luck |  |  |",
    ]


def test_document_is_written_between_its_markers() -> None:
    """What stands between the markers is replaced, what stands outside stays; without markers nothing is written."""
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.replace_between(text, "new\n")
    assert new == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.replace_between(new, "new") == new
    with pytest.raises(ValueError, match="lacks"):
        report.replace_between("nothing here", "new")


def test_the_document_has_markers() -> None:
    """docs/performance.md can be written to."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert report.replace_between(text, "x").count("x") > 0


def fio_report(**changed: float) -> str:
    """Return what fio prints for every pattern and depth, with other rates for some jobs."""
    jobs = []
    for pattern, _ in devices.PATTERNS:
        for depth in devices.DEPTHS:
            name = f"{pattern}-{depth}"
            rate = changed.get(name.replace("-", "_"), 1000.0)
            side = {"iops": rate, "bw_bytes": rate * 1000}
            nothing = {"iops": 0, "bw_bytes": 0}
            is_read = pattern.endswith("read")
            jobs.append(
                {"jobname": name, "read": side if is_read else nothing, "write": nothing if is_read else side}
            )
    return "note: something\n" + json.dumps({"jobs": jobs})


def test_fio_is_read() -> None:
    """Sequential jobs give MB/s of their own direction, random ones thousands of requests a second."""
    found = devices.read_fio(fio_report(read_8=2000.0, randwrite_32=500.0))
    assert len(found) == 12
    assert (found["read-8"], found["write-1"]) == (2.0, 1.0)
    assert (found["randwrite-32"], found["randread-1"]) == (0.5, 1.0)
    for wrong in ("", "{}", '{"jobs": [', '{"jobs": [{"jobname": "read-1", "read": {}}]}', '{"jobs": []}'):
        with pytest.raises(rounds.MeasureError, match="fio"):
            devices.read_fio(wrong)
    assert devices.fio(500).count("--stonewall") == 12


def test_the_price_of_devices_apart_is_judged() -> None:
    """A tenth of throughput and 60 ms of the start may be lost, and nobody but QEMU may wake up."""
    apart, inside = goals.DEVICES["process"], goals.DEVICES["vmm"]
    measured: samples.Samples = {
        apart: {"wall": [0.75], "tree walk": [1.0], "small files": [1.2], "random": [0.95]},
        inside: {"wall": [0.70], "tree walk": [1.0], "small files": [1.0], "random": [1.0]},
        goals.IDLE: {"others": [0.0], "qemu": [80.0]},
    }
    samples.add(measured, goals.DISKS["process"], devices.read_fio(fio_report(read_1=800.0)))
    samples.add(measured, goals.DISKS["vmm"], devices.read_fio(fio_report()))
    judged = {goal.text: goal for goal in goals.judge_devices(measured)}
    missed = [text for text, goal in judged.items() if goal.verdict == "missed"]
    assert missed == [
        "small files, device apart to in the VMM",
        "disk, read at depth 1, device apart to in the VMM",
    ]
    assert judged["start with a process for each device, more than in the VMM"].value == pytest.approx(50)
    assert len(judged) == 17
    assert {goal.verdict for goal in goals.judge_devices({})} == {"not measured"}


def test_programs_that_join_are_judged_by_what_they_take_over_the_agent() -> None:
    """Milliseconds over the agent's own; without that one there is no figure."""
    measured: samples.Samples = {
        goals.EXEC_TYPED: {"wall": [0.060]},
        goals.EXEC_API: {"wall": [0.040]},
        goals.EXEC_AGENT: {"wall": [0.020]},
    }
    typed, api = goals.judge_joins(measured)
    assert typed.value == pytest.approx(40)
    assert api.value == pytest.approx(20)
    assert (typed.verdict, api.verdict) == ("reached", "missed")
    del measured[goals.EXEC_AGENT]
    assert {goal.verdict for goal in goals.judge_joins(measured)} == {"not measured"}


def test_a_start_beside_many_is_judged_by_one_beside_none() -> None:
    """The ratio of the two ends of each line, for everything that is counted."""
    measured: samples.Samples = {
        "0 shares": {"wall": [2]},
        "4 shares": {"wall": [9]},
        "16 shares": {"wall": [3]},
    }
    shares, disks, _ = goals.judge_scaling(measured)
    assert (shares.value, shares.verdict) == (1.5, "missed")
    assert disks.value is None


def test_a_plot_is_a_picture() -> None:
    """Well-formed; each count has its place and its label, and what was not measured has none."""
    from xml.etree import ElementTree as ET

    panels = [plot.Panel("shares", {0: [0.2, 0.3], 16: [0.25], 4: []}), plot.Panel("disks", {})]
    root = ET.fromstring(plot.draw(panels))
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    # 250 ms of 300 lie higher up than nothing, and both medians at one height.
    assert [circle.get("cy") for circle in circles] == ["53.0", "53.0"]
    assert float(str(circles[0].get("cx"))) < float(str(circles[1].get("cx")))
    words = [text.text for text in root.findall(f"{space}text")]
    assert {"0", "16", "shares", "disks", "300"} <= set(words)
    assert "4" not in words
