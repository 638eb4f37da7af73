"""The stage `system`: the distribution's packages.

As root, or as a user with a ``sudo`` that asks for no password, what is missing is installed. Everybody else is told
the one command an administrator has to type. Nothing happens when nothing is missing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from setuplib import cargo, packages, stamp
from setuplib.packages import Missing
from setuplib.ui import ROOT, SetupError, output_of, say

if TYPE_CHECKING:
    from collections.abc import Iterable

DPKG_STATUS = "/var/lib/dpkg/status"
OS_RELEASE = "/etc/os-release"
BACKPORTS_OF = ("bookworm",)  # the releases whose own QEMU is older than preferred


def ensure(groups: Iterable[str], *, upgrade_qemu: bool = False) -> None:
    """Make sure that the packages of these groups are installed.

    Raises:
        SetupError: Some are missing and cannot be installed; says the command for an administrator.
    """
    groups = sorted(set(groups))
    mark = os.path.join(stamp.STAMPS, f"system-{'-'.join(groups)}")
    if not upgrade_qemu and stamp.is_fresh(mark, _key(groups)):
        return
    missing = find_missing(groups, upgrade_qemu=upgrade_qemu)
    if any(missing):
        from setuplib import apt

        become_root = find_root_prefix()
        if become_root is None:
            raise SetupError(_ask_administrator(groups, missing))
        apt.install(missing, become_root, codename())
        missing = find_missing(groups)
        if any(missing):
            raise SetupError(
                f"apt-get succeeded, and yet this is missing: {' '.join(missing.plain) or missing}"
            )
    if os.stat(ROOT).st_uid == os.geteuid():  # `sudo tools/setup system` leaves nothing of root's here
        stamp.write_stamp(mark, _key(groups))


def find_missing(groups: Iterable[str], *, upgrade_qemu: bool = False) -> Missing:
    """Return what is not installed of what these groups need."""
    groups = set(groups)
    wanted = sorted({name for group in groups for name in packages.GROUPS[group]})
    installed = installed_versions(wanted)
    plain = [name for name in wanted if name not in installed]
    qemu = False
    if packages.QEMU in wanted:
        if packages.QEMU in plain and _is_on_path("qemu-system-x86_64"):
            plain.remove(packages.QEMU)  # the administrator's own build
        old = major_version(installed.get(packages.QEMU, "")) < packages.QEMU_PREFERRED
        if old and codename() in BACKPORTS_OF:
            if packages.QEMU in plain or (upgrade_qemu and packages.QEMU in installed):
                qemu = True
                plain = [name for name in plain if name != packages.QEMU]
            elif packages.QEMU in installed:
                say(
                    "system",
                    f"QEMU {installed[packages.QEMU]} stays; it cannot have templates with file servers. "
                    "'tools/setup --upgrade-qemu run' brings QEMU 10 from the backports",
                )
    found = cargo.find() if "rust" in groups else None
    return Missing(
        plain=tuple(plain),
        qemu=qemu,
        cargo="rust" in groups and found is None,
        lints="rust" in groups and "check" in groups and (found is None or not cargo.has_lints(found)),
    )


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    # dpkg-query fails when one name is unknown but still prints the others; the status is of no interest.
    text = output_of(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n", *names], any_status=True
    )
    found = {}
    for line in text.splitlines():
        status, name, version = line.split(" ", 2)
        if status == "installed":
            found[name] = version
    return found


def find_root_prefix() -> list[str] | None:
    """Return what to put before a command to run it as root, or None when there is no way without a password."""
    if os.geteuid() == 0:
        return []
    if output_of(["sudo", "-n", "sh", "-c", "echo yes"]).strip() == "yes":
        return ["sudo", "-n"]
    return None


def codename() -> str:
    """Return the Debian release's name, or an empty string on another distribution."""
    try:
        with open(OS_RELEASE, encoding="utf-8") as file:
            pairs = dict(line.strip().split("=", 1) for line in file if "=" in line)
    except OSError:
        return ""
    return pairs.get("VERSION_CODENAME", "").strip('"') if pairs.get("ID", "").strip('"') == "debian" else ""


def _key(groups: Iterable[str]) -> str:
    """Return what the stage depends on, at the price of some `stat` calls."""
    wanted = sorted({name for group in groups for name in packages.GROUPS[group]})
    return "\n".join([*wanted, stamp.signature(DPKG_STATUS), cargo.signature()])


def _ask_administrator(groups: Iterable[str], missing: Missing) -> str:
    """Word the request: one command that can be copied."""
    names = list(missing.plain)
    if missing.qemu:
        names.append(packages.QEMU)
    if missing.cargo or missing.lints:
        from setuplib import apt

        names += apt.choose_cargo([], lints=missing.lints)
    lines = [
        "packages are missing, and this user cannot install them. An administrator has to run:",
        "",
        f"    sudo apt-get install --no-install-recommends {' '.join(sorted(set(names)))}",
        "",
    ]
    if missing.qemu:
        lines += [
            f"or, with QEMU {packages.QEMU_PREFERRED} from the backports (which can do more):",
            "",
            f"    sudo {ROOT}/tools/setup system {' '.join(groups)}",
            "",
        ]
    if missing.cargo:
        lines.append("(a Rust compiler made with rustup in this user's home does as well)")
    return "\n".join([*lines, "Then run this again."])


def _is_on_path(program: str) -> bool:
    """Whether a program can be found as the user would find it."""
    return any(
        os.access(os.path.join(directory, program), os.X_OK)
        for directory in os.environ.get("PATH", "/usr/bin").split(":")
        if directory.startswith("/")
    )


def major_version(version: str) -> int:
    """Return the first number of a Debian version (`1:10.0.2+ds-2` gives 10), 0 when there is none."""
    upstream = version.rpartition(":")[2] if ":" in version else version
    first = upstream.partition(".")[0]
    return int(first) if first.isdigit() else 0
