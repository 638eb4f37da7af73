"""Gets what cloche is compared with: once, into the XDG cache, changing nothing of the system."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.machines import Computer, computer_of, raw_qemu
from bench.rounds import MeasureError, progress, wait_for_end
from cloche.errors import ClocheError
from cloche.host.xdg import cache_dir
from cloche.kernel.store import FETCHED, stored_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
CLOCHE = ROOT / "bin" / "cloche"
VIRTME_VERSION = "1.42"
#: The kernel virtme-ng is shown with: the cloud kernel has neither 9p nor the virtiofsd that Debian 12 lacks.
_DEBIAN_KERNELS = ("linux-image-amd64", "linux-image-generic")
_INIT = "#!/bin/busybox sh\n/bin/busybox true\nexec /bin/busybox reboot -f\n"
_PT_INTERP = 3


class Parts(NamedTuple):
    """What the comparisons are made of; an empty string where something could not be had.

    Attributes:
        computer: The computer of ``cloche run``, None if cloche cannot plan a run.
        vng: virtme-ng's program.
        debian_kernel: A Debian kernel with all its modules, for virtme-ng.
        cloud_kernel: Debian's cloud kernel, or what ``cloche kernel fetch`` gives here.
        initramfs: busybox, which runs ``true`` and restarts.
        missing: What could not be had, and why.
    """

    computer: Computer | None
    vng: str
    debian_kernel: str
    cloud_kernel: str
    initramfs: str
    missing: dict[str, str]

    def vng_environment(self) -> dict[str, str]:
        """Return the environment in which virtme-ng finds its own programs."""
        return {**os.environ, "PATH": f"{os.path.dirname(self.vng)}:{os.environ.get('PATH', os.defpath)}"}


def prepare(*, virtme: bool) -> Parts:
    """Get everything; what cannot be had is named in ``missing`` and the rest goes on."""
    home = Path(cache_dir(), "bench")
    home.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}

    def attempt(name: str, get: Callable[[], str]) -> str:
        progress(f"getting {name}")
        try:
            return get()
        except (MeasureError, ClocheError, OSError) as error:
            missing[name] = str(error)
        except subprocess.CalledProcessError as error:
            missing[name] = f"{error.cmd[0]} ended with status {error.returncode}"
        return ""

    computer = None
    try:
        computer = computer_with()
    except (ClocheError, ImportError) as error:
        missing["cloche"] = str(error)
    parts = Parts(
        computer=computer,
        vng=attempt("virtme-ng", lambda: _virtme_ng(home)) if virtme else "",
        debian_kernel=attempt("Debian's kernel", lambda: _debian_kernel(home)) if virtme else "",
        cloud_kernel=attempt("Debian's cloud kernel", _cloud_kernel),
        initramfs=attempt("the busybox initramfs", lambda: _initramfs(home)),
        missing=missing,
    )
    if computer is not None:
        attempt("a raw QEMU that runs true", lambda: check_raw(computer))
    progress("")
    return parts


def computer_with(memory_mib: int | None = None) -> Computer:
    """Return the computer of a run with so much memory, or as much as it has by itself.

    Raises:
        ClocheError: There is none.
        MeasureError: It would be none.
    """
    from cloche.domain.prepare import prepare_plan
    from cloche.host.facts import collect_facts
    from cloche.model.request import RunRequest

    facts = collect_facts()
    plan = prepare_plan(RunRequest(argv=(b"true",), cold=True, memory_mib=memory_mib), facts)
    if plan.machine is None:
        raise MeasureError("the default driver has no machine")
    vmm = next(process for process in plan.processes if "-kernel" in map(os.fsdecode, process.argv))
    argv = [os.fsdecode(word) for word in vmm.argv]
    return computer_of(argv, facts.tools.qemu, plan.machine.kernel.path, plan.machine.memory_mib)


def check_raw(computer: Computer) -> str:
    """Boot the raw machine once with a console and see that ``true`` was started and ended well.

    A machine that cannot mount its root ends just as quickly, with the same status.

    Raises:
        MeasureError: It was not.
    """
    argv = [word.replace("quiet", "loglevel=7") for word in raw_qemu(computer, "/bin/true", console=True)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode("utf-8", "replace")
        wait_for_end(process, 60)
    if "Attempted to kill init! exitcode=0x00000000" not in said:
        lines = [line for line in said.splitlines() if line.strip()]
        raise MeasureError(f"true did not run on raw QEMU: {lines[-1] if lines else 'no output'}")
    return "true"


def _virtme_ng(home: Path) -> str:
    venv = home / f"virtme-ng-{VIRTME_VERSION}"
    vng, done = venv / "bin" / "vng", venv / "complete"
    if not done.exists():
        shutil.rmtree(venv, ignore_errors=True)
        _run(["/usr/bin/python3", "-m", "venv", str(venv)])
        _run(
            [
                str(venv / "bin" / "pip"),
                "--quiet",
                "--disable-pip-version-check",
                "install",
                f"virtme-ng=={VIRTME_VERSION}",
            ]
        )
        done.touch()
    if not shutil.which("udevadm"):
        raise MeasureError("its guest finds its ports by udev: apt-get install udev")
    return str(vng)


def _debian_kernel(home: Path) -> str:
    from cloche.kernel.packages import PackageSource, unpack_package

    tree = home / "debian-kernel"
    if not (tree / "complete").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        source = PackageSource(str(home))
        archive = source.download(source.dependency(source.find(*_DEBIAN_KERNELS), "linux-image-"))
        unpack_package(archive, str(tree))
        Path(archive).unlink()
        (tree / "complete").touch()
    images = sorted((tree / "boot").glob("vmlinuz-*"))
    if not images:
        raise MeasureError("the package holds no kernel")
    return str(images[-1])


def _cloud_kernel() -> str:
    for kernel in stored_kernels():
        if kernel.kind == FETCHED:
            return kernel.image
    from cloche.kernel.fetch import fetch_kernel

    return fetch_kernel().image


def _initramfs(home: Path) -> str:
    busybox = shutil.which("busybox")
    if busybox is None or not is_static(Path(busybox)):
        raise MeasureError("there is no static busybox: apt-get install busybox-static")
    tree, archive = home / "initramfs", home / "initramfs.cpio"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "bin").mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    names = b"bin\nbin/busybox\ninit\n"
    with archive.open("wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names, stdout=out, cwd=tree, check=True)
    return str(archive)


def is_static(program: Path) -> bool:
    """Return whether a 64-bit ELF program needs no loader."""
    data = program.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    offset = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    return all(
        struct.unpack_from("<I", data, offset + size * index)[0] != _PT_INTERP for index in range(count)
    )


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
