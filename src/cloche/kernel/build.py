"""cloche's own guest kernel, built from the distribution's kernel source package (layer 3, off the way to a run).

The same inputs give the same bytes: the fragment and the patches in ``guest/``, the source archive, the compiler, the
linker and :data:`RECIPE`. Their hash names the result, so a second build with the same inputs is a look into the store.
"""

from __future__ import annotations

import os
import re
import shutil
from hashlib import sha256

from cloche.errors import HostError, KernelError
from cloche.host.xdg import cache_dir
from cloche.kernel.packages import PackageSource, unpack_package
from cloche.kernel.store import (
    BUILT,
    KernelInfo,
    check_image,
    publish_kernel,
    stored_kernels,
)
from cloche.kernel.tools import exclusive_workspace, file_sha256, no_progress, require_tools, run_tool
from cloche.model.machine import EMPTY_DRIVE, LO_ON_DEMAND
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.kernel.tools import Progress

#: Raised whenever this module would make other bytes of the same inputs.
RECIPE = 1
SOURCE_PACKAGE = "linux-source-6.12"
TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "strip": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
}
#: Headers that no program of :data:`TOOLS` stands for, and their packages.
HEADERS = {"/usr/include/libelf.h": "libelf-dev", "/usr/include/stdio.h": "libc6-dev"}

#: Large parts of the source that this configuration never compiles. Their Kconfig files and makefiles are needed.
_SKIPPED_CODE = (
    *(f"Documentation/*.{ending}" for ending in ("rst", "txt", "yaml", "svg")),
    *(f"arch/{name}/*.[chS]" for name in ("arm*", "powerpc", "mips", "s390", "riscv")),
    "arch/arm*/*.dts*",
    *(
        f"{directory}/*.[ch]"
        for directory in (
            "drivers/gpu",
            "drivers/iio",
            "drivers/infiniband",
            "drivers/media",
            "drivers/net/ethernet",
            "drivers/net/wireless",
            "drivers/pinctrl",
            "drivers/staging",
            "drivers/usb",
            "sound",
        )
    ),
    "tools/testing/*",
    "tools/perf/*",
)
#: What fixes the bytes that would otherwise hold the time, the user and the machine of the build.
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "cloche",
    "KBUILD_BUILD_HOST": "cloche",
    "KBUILD_BUILD_VERSION": "1",
    "SOURCE_DATE_EPOCH": "0",
}
#: Lines "  CC  file" that make prints for the whole kernel; only the progress depends on it.
_STEPS = 1860
_STEP = re.compile(r"^  [A-Z][A-Z0-9_]* +\S")
_UNPACKED, _CONFIGURED, _COMPILED = 0.10, 0.12, 0.98


class Inputs(Record):
    """All that decides about the bytes of a kernel: paths of files, and what the tools call themselves."""

    fragment: str
    patches: tuple[str, ...]
    source: str
    tools: tuple[str, ...]

    def digest(self) -> str:
        """Return the hash of the inputs' content, in hex."""
        parts = [f"recipe {RECIPE}", *self.tools]
        parts += [
            f"{os.path.basename(path)} {file_sha256(path)}"
            for path in (self.fragment, *self.patches, self.source)
        ]
        return sha256("\n".join(parts).encode()).hexdigest()


def build_kernel(
    progress: Progress = no_progress, *, jobs: int | None = None, inputs: Inputs | None = None
) -> KernelInfo:
    """Build the guest kernel, or return the one in the store if it was built of the same inputs.

    ``jobs`` is how many compilers run at once (None: one for each CPU this process may use), ``inputs`` what it
    is made of (None: the project's and the distribution's). Takes about 1.3 GB of the cache directory while it runs.

    Raises:
        MissingToolError: A compiler or another tool is missing; the hint names the packages.
        KernelError: There is no source, or the build fails; ``detail`` holds its last words.
        HostError: The cache directory cannot be written.
    """
    progress("looking for what is needed", 0.0)
    require_tools(TOOLS, HEADERS)
    try:
        with exclusive_workspace(cache_dir(), "build", progress) as work:
            inputs = inputs or find_inputs(work, progress)
            digest = inputs.digest()
            known = _known(digest)
            if known is None:
                known = _build(inputs, digest, work, jobs or len(os.sched_getaffinity(0)), progress)
    except OSError as error:
        raise HostError(
            f"cannot build a kernel in {cache_dir()}: {error.strerror}",
            hint="It needs 1.5 GB there while it builds; XDG_CACHE_HOME moves the cache to another place.",
        ) from error
    progress("done", 1.0)
    return known


def find_inputs(work: str, progress: Progress = no_progress) -> Inputs:
    """Find the fragment, the patches and the source; a source package that is not installed is downloaded.

    ``work`` is an existing directory for what is needed on the way.

    Raises:
        KernelError: Something is missing.
    """
    guest = guest_directory()
    patches = os.path.join(guest, "patches")
    return Inputs(
        fragment=os.path.join(guest, "kernel.config"),
        patches=tuple(
            os.path.join(patches, name) for name in sorted(os.listdir(patches)) if name.endswith(".patch")
        ),
        source=_find_source(work, progress),
        tools=tuple(run_tool([tool, "--version"]).splitlines()[0] for tool in ("gcc", "ld")),
    )


def guest_directory() -> str:
    """Return the directory with the fragment and the patches: beside this package, or the project's ``guest/``.

    Raises:
        KernelError: Neither is there.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for candidate in (os.path.join(package, "guest_kernel"), os.path.join(package, "..", "..", "guest")):
        if os.path.exists(os.path.join(candidate, "kernel.config")):
            return os.path.normpath(candidate)
    raise KernelError(
        "the guest kernel's configuration is missing from this installation",
        hint="Install cloche again, or run it from a checkout.",
    )


def lost_options(fragment: str, config: str) -> list[str]:
    """Return the lines of a fragment that the final configuration does not have; pure.

    Kconfig drops what depends on something that is off, or no longer exists, without a word.
    """
    have = set(config.splitlines())
    lines = [line.strip() for line in fragment.splitlines()]
    return [
        line
        for line in lines
        if (line.startswith("CONFIG_") and line not in have)
        # An option that vanished together with its menu is as good as not set.
        or (line.startswith("# CONFIG_") and f"{line.split()[1]}=y" in have)
    ]


def _known(digest: str) -> KernelInfo | None:
    for kernel in stored_kernels():
        if kernel.id.endswith(f"-{digest[:12]}"):
            try:
                check_image(kernel)
            except KernelError:
                continue  # Damaged: it is built again and replaced.
            return kernel
    return None


def _find_source(work: str, progress: Progress) -> str:
    name = f"{SOURCE_PACKAGE}.tar.xz"
    private = os.path.join(cache_dir(), "source")
    for directory in ("/usr/src", private):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return path
    progress(f"downloading {SOURCE_PACKAGE}", 0.0)
    packages = PackageSource(os.path.join(work, "package"))
    tree = os.path.join(work, "package", "tree")
    unpack_package(packages.download(packages.find(SOURCE_PACKAGE)), tree)
    os.makedirs(private, exist_ok=True)
    os.rename(os.path.join(tree, "usr", "src", name), os.path.join(private, name))
    return os.path.join(private, name)


def _build(inputs: Inputs, digest: str, work: str, jobs: int, progress: Progress) -> KernelInfo:
    progress("unpacking the source", 0.01)
    # Built inside its own tree, so that every path in the kernel is relative and the place leaves no trace.
    tree = os.path.join(work, "linux")
    os.mkdir(tree)
    excludes = [f"--exclude=*/{pattern}" for pattern in _SKIPPED_CODE]
    unpack = [
        "tar",
        "--extract",
        "--file",
        inputs.source,
        "--strip-components=1",
        "--no-same-owner",
        *excludes,
    ]
    run_tool(unpack, cwd=tree)
    for patch in inputs.patches:
        run_tool(["patch", "--strip=1", "--forward", "--no-backup-if-mismatch", "--input", patch], cwd=tree)
    progress("configuring", _UNPACKED)
    _configure(inputs.fragment, tree)
    progress("compiling", _CONFIGURED)
    _compile(tree, jobs, progress)
    progress("storing", _COMPILED)
    return publish_kernel(*_prepare(digest, tree, os.path.join(work, "kernel")))


def _configure(fragment: str, tree: str) -> None:
    run_tool(["make", "allnoconfig"], cwd=tree, extra_env={"KCONFIG_ALLCONFIG": fragment, **_REPRODUCIBLE})
    with open(fragment, encoding="utf-8") as file:
        wanted = file.read()
    with open(os.path.join(tree, ".config"), encoding="utf-8") as file:
        lost = lost_options(wanted, file.read())
    if lost:
        raise KernelError(
            f"this kernel source does not take {len(lost)} of the options: {', '.join(lost)}",
            hint="the fragment guest/kernel.config is for Linux 6.12",
        )


def _compile(tree: str, jobs: int, progress: Progress) -> None:
    done = 0

    def count(line: str) -> None:
        nonlocal done
        if _STEP.match(line):
            done += 1
            if done % 10 == 0:
                progress("compiling", _CONFIGURED + (_COMPILED - _CONFIGURED) * min(done / _STEPS, 1.0))

    # Warnings are for those who change the kernel; looking for them takes a twentieth of the time.
    run_tool(["make", f"-j{jobs}", "KCFLAGS=-w", "vmlinux"], cwd=tree, extra_env=_REPRODUCIBLE, on_line=count)


def _prepare(digest: str, tree: str, prepared: str) -> tuple[KernelInfo, str]:
    """Make the directory that is to be published: the kernel without symbols, and its map for whoever reads a trace."""
    with open(os.path.join(tree, "include", "config", "kernel.release"), encoding="utf-8") as file:
        release = file.read().strip()
    os.makedirs(prepared)
    image = os.path.join(prepared, "vmlinux")
    # QEMU reads and sorts every symbol it finds at every start.
    run_tool(["strip", "--strip-all", "-o", image, os.path.join(tree, "vmlinux")])
    shutil.copyfile(os.path.join(tree, "System.map"), os.path.join(prepared, "System.map"))
    shutil.copyfile(os.path.join(tree, ".config"), os.path.join(prepared, "config"))
    kernel = KernelInfo(
        id=f"{release}-{digest[:12]}",
        kind=BUILT,
        version=release,
        machines=("microvm",),
        image=image,
        size_bytes=os.stat(image).st_size,
        sha256=file_sha256(image),
        modules=(),
        directory=prepared,
        abilities=(LO_ON_DEMAND, EMPTY_DRIVE),
    )
    return kernel, prepared
