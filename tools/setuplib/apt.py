"""Installing packages through a private apt source.

The private source has its own list of sources and its own index files in the XDG cache, removed afterwards. So the
system's own configuration stays as it is, a third party's broken source does not matter, and Debian 12's backports
(QEMU 10) are there without being switched on for the whole system. Where the archive is comes from the system's own
sources, so a local mirror stays in use. Elsewhere than on Debian the system's own sources are used.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from setuplib import cargo, packages
from setuplib.ui import SetupError, cache_home, output_of, run, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from setuplib.packages import Missing

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OPTIONS = ("-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold")
_PINNED = "qemu-* seabios"
_ENVIRONMENT = ("env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=a", "LC_ALL=C.UTF-8")


def install(missing: Missing, become_root: Sequence[str], codename: str) -> None:
    """Install what is missing.

    Args:
        missing: What it is.
        become_root: The words before a command that run it as root.
        codename: The Debian release, empty elsewhere.

    Raises:
        SetupError: apt-get failed.
    """
    root = (*become_root, *_ENVIRONMENT)
    with _private_source(codename, become_root) as private:
        run("system", "reading the package lists", [*root, "apt-get", *private, "update"])
        plain = list(missing.plain)
        if missing.cargo or missing.lints:
            plain += choose_cargo(private, lints=missing.lints)
        get = [*root, "apt-get", *private, *_OPTIONS, "install", "--yes", "--no-install-recommends"]
        backports = f"{codename}-backports"
        if missing.qemu:
            try:
                run(
                    "system",
                    f"installing QEMU {packages.QEMU_PREFERRED} from {backports}",
                    [*get, packages.QEMU],
                )
            except SetupError as error:
                say("system", f"no QEMU from the backports, taking the release's own ({error})")
                plain.append(f"{packages.QEMU}/{codename}")
        if plain:
            label = f"installing {len(plain)} packages: {' '.join(plain)}"
            try:
                run("system", label, [*get, *plain])
            except SetupError:
                if not private:
                    raise
                # A library that came from the backports before wants its headers from there.
                run("system", f"once more, with {backports}", [*get, "-t", backports, *plain])


def choose_cargo(private: Sequence[str], *, lints: bool) -> list[str]:
    """Return the packages with a Rust compiler that is new enough; the newest there are when none is.

    Args:
        private: apt's options for the private source.
        lints: Whether rustfmt and clippy are wanted too.
    """
    best: tuple[str, ...] = packages.CARGO[-1]
    for choice in packages.CARGO:
        policy = output_of(["apt-cache", *private, "policy", choice[1]])
        candidate = policy.partition("Candidate: ")[2].partition("\n")[0]
        if cargo.parse_version(candidate) >= cargo.least_version():
            best = choice
            break
    return list(best if lints else best[:2])


@contextmanager
def _private_source(codename: str, become_root: Sequence[str]) -> Iterator[list[str]]:
    """Make the private source; yield apt's options for it (none where the system's sources have to do)."""
    targets = archive_uris(codename)
    if codename and not targets:
        # A machine that never read its package lists does not name its archives either.
        run(
            "system", "reading the system's package lists", [*become_root, *_ENVIRONMENT, "apt-get", "update"]
        )
        targets = archive_uris(codename)
    if not targets:
        yield []
        return
    os.makedirs(cache_home(), exist_ok=True)
    directory = tempfile.mkdtemp(prefix="apt-", dir=cache_home())
    try:
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            os.makedirs(os.path.join(directory, name))
        signed = f" [signed-by={KEYRING}]" if os.path.exists(KEYRING) else ""
        with open(os.path.join(directory, "sources.list"), "w", encoding="utf-8") as file:
            file.writelines(f"deb{signed} {uri} {release} main\n" for release, uri in targets.items())
        # QEMU's own packages are preferred from the backports, and what else they need only if there is no other way:
        # with `-t` the backports' newest of every library would come too, and its headers would no longer fit.
        with open(os.path.join(directory, "preferences"), "w", encoding="utf-8") as file:
            file.write(f"Package: {_PINNED}\nPin: release n={codename}-backports\nPin-Priority: 990\n")
        options = {
            "Dir::Etc::preferences": f"{directory}/preferences",
            "Dir::Etc::sourcelist": f"{directory}/sources.list",
            "Dir::Etc::sourceparts": f"{directory}/parts",
            "Dir::State::lists": f"{directory}/lists",
            "Dir::Cache": f"{directory}/cache",
            "APT::Get::List-Cleanup": "0",
            "APT::Sandbox::User": "root",  # apt's own user cannot look into a home directory
        }
        yield [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    finally:
        # With sudo what apt wrote is root's.
        output_of([*become_root, "rm", "-rf", "--", directory])


def archive_uris(codename: str) -> dict[str, str]:
    """Return where the system gets a Debian release from, by release (`bookworm`, `bookworm-security` ...)."""
    if not codename:
        return {}
    text = output_of(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(CODENAME) $(REPO_URI) $(COMPONENT)",
            "Created-By: Packages",
        ]
    )
    found: dict[str, str] = {}
    for line in text.splitlines():
        release, uri, component = line.split(" ", 2)
        if component == "main" and release in {codename, f"{codename}-updates", f"{codename}-security"}:
            found.setdefault(release, uri)
    if codename in found:
        found.setdefault(f"{codename}-backports", found[codename])
    return found
