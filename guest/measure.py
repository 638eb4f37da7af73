#!/usr/bin/python3
"""Measure what each machine option and each word of the kernel's command line brings under TCG.

Every case is the recommended start with one thing changed. A run is one QEMU from its start to its exit: the guest
boots, and PID 1 (six instructions) ends the machine. Cases take turns, so that a busy host is unjust to all alike;
the processor time of QEMU (user and system) is what a busy host changes least. Prints a Markdown table.

    guest/measure.py [--runs 9] [--kernel VMLINUX] [--compare VMLINUZ] [--initrd FILE] [CASE ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from cloche.kernel.initramfs import pack_initramfs
from cloche.kernel.store import find_kernel

#: reboot(RB_AUTOBOOT), and nothing else.
INIT = r"""
.globl _start
_start: mov $169, %eax; mov $0xfee1dead, %edi; mov $672274793, %esi; mov $0x01234567, %edx; syscall
1: jmp 1b
"""
SLOTS = " ".join(f"virtio_mmio.device=512@{0xFEB00000 + 512 * slot:#x}:{5 + slot}" for slot in range(8))
MACHINE = "microvm,acpi=off,pit=off,pic=off,rtc=on,isa-serial=off,auto-kernel-cmdline=off"


class Case(NamedTuple):
    """One way to start a machine: QEMU's options and the kernel's command line."""

    name: str
    machine: str
    cpu: str
    accel: str
    memory: str
    words: str
    more: tuple[str, ...] = ()


class Result(NamedTuple):
    """Seconds of one run."""

    wall: float
    processor: float


def host_tsc_khz() -> int:
    """Return the frequency of the host's TSC, from KVM (guest/cmdline.md)."""
    import fcntl

    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(device, 0xAE01, 0)
    try:
        return fcntl.ioctl(machine, 0xAEA3, 0)
    finally:
        os.close(machine)
        os.close(device)


def make_cases(khz: int) -> list[Case]:
    """Return the recommended start, and each of its parts changed alone."""
    words = {
        "reboot=t": "",
        "panic=-1": "",
        "quiet": "",
        "rcupdate.rcu_expedited=1": "",
        "tsc=reliable": "",
        "lapic_timer_hz=1000000000": "",
        "keep_initmem": "",
        "noreplace-smp": "",
        f"tsc_early_khz={khz}": "",
        f"lpj={khz * 10}": "",
    }
    line = f"{' '.join(words)} {SLOTS}"
    best = Case("recommended", MACHINE, "max", "tcg,thread=single", "1024", line)
    pit = MACHINE.replace("pit=off,pic=off", "pit=on,pic=on")

    def without(*gone: str) -> str:
        return " ".join(word for word in line.split() if not word.startswith(gone))

    memfd = ("-object", "memory-backend-memfd,id=m,size=1024M,share=on")
    return [
        best,
        *(
            best._replace(
                name=f"without `{word.split('=')[0] if 'khz' in word else word}`", words=without(word)
            )
            for word in (
                "quiet",
                "rcupdate.rcu_expedited=1",
                "tsc=reliable",
                "keep_initmem",
                "noreplace-smp",
                "lpj=",
            )
        ),
        best._replace(name="without `lapic_timer_hz`", machine=pit, words=without("lapic_timer_hz")),
        best._replace(
            name="`nolapic_timer` instead",
            machine=pit,
            words=f"nolapic_timer no_timer_check {without('lapic_timer_hz')}",
        ),
        best._replace(name="without `tsc_early_khz`", machine=pit, words=without("tsc_early_khz", "lpj")),
        best._replace(
            name="with `mitigations=off random.trust_cpu=on`",
            words=f"{line} mitigations=off random.trust_cpu=on",
        ),
        best._replace(name="slots not named", words=without("virtio_mmio")),
        best._replace(name="`pit=on,pic=on`", machine=pit),
        best._replace(name="`rtc=off`", machine=MACHINE.replace("rtc=on", "rtc=off")),
        best._replace(
            name="`isa-serial=on`, unused", machine=MACHINE.replace("isa-serial=off", "isa-serial=on")
        ),
        best._replace(name="`-bios bios-microvm.bin` (SeaBIOS)", more=("-bios", "bios-microvm.bin")),
        best._replace(name="`thread=multi`", accel="tcg,thread=multi"),
        *(
            best._replace(name=f"`tb-size={size}`", accel=f"tcg,thread=single,tb-size={size}")
            for size in (16, 32, 64, 256)
        ),
        *(best._replace(name=f"`-cpu {cpu}`", cpu=cpu) for cpu in ("qemu64", "Nehalem", "Haswell")),
        *(best._replace(name=f"`-m {size}`", memory=size) for size in ("128", "256", "512", "2048", "4096")),
        best._replace(name="`-m 4096`, `swiotlb=noforce`", memory="4096", words=f"{line} swiotlb=noforce"),
        best._replace(
            name="`memory-backend-memfd,share=on`", machine=f"{MACHINE},memory-backend=m", more=memfd
        ),
        best._replace(name="`-smp 2`", accel="tcg,thread=multi", more=("-smp", "2")),
        best._replace(
            name="`-smp 2` without `lpj`", accel="tcg,thread=multi", more=("-smp", "2"), words=without("lpj=")
        ),
        best._replace(
            name="`-machine pc`-like line: none of the words", machine=pit, words=f"reboot=t panic=-1 {SLOTS}"
        ),
    ]


def run(case: Case, kernel: str, initrd: str) -> Result:
    """Start a machine and wait for its end."""
    # fmt: off
    argv = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-M", case.machine, "-cpu", case.cpu, "-accel", case.accel, "-m", case.memory, *case.more,
        "-kernel", kernel, "-initrd", initrd, "-append", case.words,
    ]
    # fmt: on
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{case.name}: QEMU ended with status {process.returncode}")
    return Result(wall, usage.ru_utime + usage.ru_stime)


def make_initrd(directory: Path) -> str:
    """Write an initramfs whose init ends the machine at once."""
    (directory / "init.S").write_text(INIT)
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-no-pie", "-s", "-o", directory / "init", directory / "init.S"],
        check=True,
    )
    path = directory / "initrd.cpio"
    path.write_bytes(pack_initramfs((directory / "init").read_bytes()))
    return str(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--kernel", help="a vmlinux (default: the built one)")
    parser.add_argument("--compare", help="a distribution's vmlinuz, for a start on -M pc")
    parser.add_argument("--initrd", help="another initramfs, whose init must end the machine")
    parser.add_argument("cases", nargs="*", help="only cases whose name holds one of these")
    args = parser.parse_args()
    kernel = args.kernel or find_kernel("built").image
    with tempfile.TemporaryDirectory() as directory:
        initrd = args.initrd or make_initrd(Path(directory))
        planned = [(case, kernel) for case in make_cases(host_tsc_khz())]
        if args.cases:
            planned = [
                planned[0],
                *(pair for pair in planned[1:] if any(word in pair[0].name for word in args.cases)),
            ]
        if args.compare:
            pc = Case("`-M pc`, the distribution's kernel", "pc", "qemu64", "tcg", "1024", "panic=-1")
            planned.append((pc, args.compare))
        results: dict[str, list[Result]] = {case.name: [] for case, _ in planned}
        for _ in range(args.runs):
            for case, image in planned:
                results[case.name].append(run(case, image, initrd))
    base = statistics.median(result.processor for result in results[planned[0][0].name])
    lines = [
        "| changed | processor time, median | least | wall clock, median | least | change |",
        "|---|---|---|---|---|---|",
    ]
    for case, _ in planned:
        walls = sorted(result.wall for result in results[case.name])
        times = sorted(result.processor for result in results[case.name])
        middle = statistics.median(times)
        cells = " | ".join(
            f"{cell * 1000:.0f}" for cell in (middle, times[0], statistics.median(walls), walls[0])
        )
        lines.append(f"| {case.name} | {cells} | {(middle - base) * 1000:+.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
