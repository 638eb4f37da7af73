"""The distribution's own kernel, fetched and not installed (layer 3, off the way to a run).

It starts slower than a built one and only on q35, without a template (DESIGN, D4), but is there within seconds.
"""

from __future__ import annotations

import os
import shutil

from cloche.errors import HostError, KernelError
from cloche.host.xdg import cache_dir
from cloche.kernel.modules import needed_modules
from cloche.kernel.packages import PackageSource, unpack_package
from cloche.kernel.store import FETCHED, KernelInfo, publish_kernel, stored_kernels
from cloche.kernel.tools import exclusive_workspace, file_sha256, no_progress
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.kernel.tools import Progress

#: Asked for in this order: the cloud kernel is the smallest download and has all virtio drivers (but no 9p).
PACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual", "linux-image-generic")


def fetch_kernel(progress: Progress = no_progress) -> KernelInfo:
    """Fetch the distribution's kernel into the store, or return the one there if it is the current one.

    Raises:
        KernelError: There is no such package, it cannot be downloaded, or it is not what was expected.
        MissingToolError: apt or dpkg is missing.
        HostError: The cache directory cannot be written.
    """
    try:
        with exclusive_workspace(cache_dir(), "fetch", progress) as work:
            kernel = _fetch(work, progress)
    except OSError as error:
        raise HostError(
            f"cannot keep a kernel in {cache_dir()}: {error.strerror}",
            hint="Free some space there; XDG_CACHE_HOME moves the cache to another place.",
        ) from error
    progress("done", 1.0)
    return kernel


def _fetch(work: str, progress: Progress) -> KernelInfo:
    progress("looking for the package", 0.0)
    source = PackageSource(work)
    package = source.dependency(source.find(*PACKAGES), "linux-image-")
    progress(f"downloading {package}", 0.1)
    archive = source.download(package)
    # The file's name holds package and version: NAME_VERSION_ARCHITECTURE.deb
    name, version = os.path.basename(archive).split("_")[:2]
    identifier = f"{name.removeprefix('linux-image-')}_{version}".replace("%3a", ":").replace("/", "-")
    for kernel in stored_kernels():
        if kernel.id == identifier:
            return kernel
    progress("unpacking", 0.7)
    tree = os.path.join(work, "tree")
    unpack_package(archive, tree)
    progress("choosing modules", 0.9)
    return publish_kernel(*_prepare(identifier, tree, os.path.join(work, "kernel")))


def _prepare(identifier: str, tree: str, prepared: str) -> tuple[KernelInfo, str]:
    """Copy image and needed modules out of an unpacked package, and describe them."""
    boot = os.path.join(tree, "boot")
    images = (
        sorted(name for name in os.listdir(boot) if name.startswith("vmlinuz-"))
        if os.path.isdir(boot)
        else []
    )
    if not images:
        raise KernelError(f"the package of {identifier} holds no kernel")
    release = images[-1].removeprefix("vmlinuz-")
    modules_tree = next(
        (
            path
            for lib in ("lib", "usr/lib")
            if os.path.isdir(path := os.path.join(tree, lib, "modules", release))
        ),
        None,
    )
    if modules_tree is None:
        raise KernelError(f"the package of {identifier} holds no modules")
    os.makedirs(os.path.join(prepared, "modules"))
    image = os.path.join(prepared, "vmlinuz")
    shutil.copyfile(os.path.join(boot, images[-1]), image)
    modules: list[str] = []
    for path in needed_modules(modules_tree):
        copy = os.path.join(prepared, "modules", os.path.basename(path))
        shutil.copyfile(path, copy)
        modules.append(copy)
    kernel = KernelInfo(
        id=identifier,
        kind=FETCHED,
        version=release,
        machines=("q35", "pc"),
        image=image,
        size_bytes=os.stat(image).st_size,
        sha256=file_sha256(image),
        modules=tuple(modules),
        directory=prepared,
    )
    return kernel, prepared
