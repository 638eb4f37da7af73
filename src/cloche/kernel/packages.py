"""The distribution's packages, downloaded and unpacked without being installed (layer 3, off the way to a run).

apt checks their signatures; nothing of the system is changed and no right is needed. Where the system has no package
lists (a fresh container) or cannot be asked, lists are fetched into the cache directory.
"""

from __future__ import annotations

import os

from cloche.errors import KernelError
from cloche.host.xdg import cache_dir
from cloche.kernel.tools import require_tools, run_tool


class PackageSource:
    """What apt is asked with: the system's own lists, or private ones once those did not do.

    Attributes:
        directory: Where downloads and private lists are put.
    """

    def __init__(self, directory: str) -> None:
        require_tools({"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"})
        self.directory = directory
        self._options: list[str] = []

    def find(self, *names: str) -> str:
        """Return the first of these packages that can be downloaded, fetching private lists if the system's know none.

        Raises:
            KernelError: The distribution has none of them.
        """
        for attempt in range(2):
            for name in names:
                if self._known(name):
                    return name
            if attempt == 0:
                self._update()
        raise KernelError(
            f"the distribution has no package {' or '.join(names)}",
            hint="look into /etc/apt/sources.list*",
        )

    def dependency(self, name: str, prefix: str) -> str:
        """Return the first dependency of ``name`` that begins with ``prefix``; ``name`` if there is none."""
        for line in run_tool(["apt-cache", *self._options, "depends", "--important", name]).splitlines():
            kind, _, target = line.strip().lstrip("|").partition(": ")
            if kind == "Depends" and target.startswith(prefix):
                return target
        return name

    def download(self, name: str) -> str:
        """Download a package and return the path of the file. If the lists are too old for it they are fetched anew.

        Raises:
            KernelError: It cannot be downloaded.
        """
        try:
            return self._download(name)
        except KernelError:
            if self._options:
                raise
        self._update()
        return self._download(name)

    def _known(self, name: str) -> bool:
        output = run_tool(["apt-cache", *self._options, "policy", name])
        lines = [line.strip() for line in output.splitlines()]
        return any(line.startswith("Candidate:") and not line.endswith("(none)") for line in lines)

    def _download(self, name: str) -> str:
        directory = os.path.join(self.directory, "download")
        os.makedirs(directory, exist_ok=True)
        before = set(os.listdir(directory))
        run_tool(["apt-get", *self._options, "-q", "download", name], cwd=directory)
        for file in sorted(set(os.listdir(directory)) - before):
            if file.endswith(".deb"):
                return os.path.join(directory, file)
        raise KernelError(f"apt-get downloaded no file for {name}", hint="See what `apt-get download` says.")

    def _update(self) -> None:
        lists = os.path.join(cache_dir(), "apt", "lists")
        cache = os.path.join(cache_dir(), "apt", "cache")
        os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
        os.makedirs(os.path.join(cache, "archives", "partial"), exist_ok=True)
        self._options = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        if os.geteuid() == 0:
            # apt would step down to a user of its own, who cannot enter root's cache directory.
            self._options += ["-o", "APT::Sandbox::User=root"]
        run_tool(["apt-get", *self._options, "-q", "update"])


def unpack_package(path: str, target: str) -> None:
    """Unpack a package's files below ``target``; none of its scripts is run.

    Raises:
        KernelError: The file is damaged.
    """
    run_tool(["dpkg-deb", "-x", path, target])
