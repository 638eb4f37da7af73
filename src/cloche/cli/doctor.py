"""``cloche doctor`` (layer 6): what works on this host, what does not, and the command that mends it."""

from __future__ import annotations

import os
import pwd
import sys

from cloche.cli.listing import print_json
from cloche.domain.trial import KVM_DEADLINE_S, try_run
from cloche.errors import ClocheError
from cloche.host import accel, cgroups, xdg
from cloche.host.facts import collect_facts
from cloche.host.landlock import LANDLOCK_LIMITS, landlock_version
from cloche.host.tools import find_system_tool
from cloche.host.userns import probe_namespaces
from cloche.model.jail import IDS_PER_DOMAIN
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.model.facts import HostFacts


class Finding(Record):
    """One line of the report: ``state`` is ``ok``, ``note`` (works, but less well) or ``bad``."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def main(parsed: Parsed) -> int:
    """Look, try, report. Status 0 when programs can be run, 125 when not."""
    findings = examine()
    if parsed.get("json"):
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.state:<5} {finding.name:<12} {finding.detail}\n")
            if finding.remedy:
                sys.stdout.write(f"      {'':<12} mend it: {finding.remedy}\n")
    return 125 if any(finding.state == "bad" for finding in findings) else 0


def examine() -> list[Finding]:
    """Return the findings, the cheap ones first; what depends on a broken part is not tried."""
    findings = [*_directories(), _settings(), _namespaces(), _landlock(), _cgroups()]
    facts = collect_facts()
    if facts.user.uid == 0:
        findings.append(_ids(facts))
    findings += _tools(facts)
    findings.append(_kernel())
    if any(finding.state == "bad" for finding in findings):
        return findings
    findings.append(_emulation(facts))
    findings.append(_kvm(facts))
    return findings


def _directories() -> list[Finding]:
    findings = []
    for name, path in (("cache", xdg.cache_dir()), ("runtime", xdg.runtime_dir())):
        try:
            xdg.ensure_directory(path)
            findings.append(Finding(name, "ok", path))
        except ClocheError as error:
            findings.append(Finding(name, "bad", error.message, error.hint or ""))
    return findings


def _settings() -> Finding:
    from cloche.domain.settings import load
    from cloche.host.settings_files import open_settings
    from cloche.model.settings import all_keys

    try:
        files = load(open_settings(), all_keys())
    except ClocheError as error:
        return Finding("settings", "bad", error.message, error.hint or "")
    return Finding(
        "settings", "ok", ", ".join(one.path for one in files) or "no files: what is built in holds"
    )


def _namespaces() -> Finding:
    result = probe_namespaces()
    return Finding("namespaces", "ok" if result.works else "bad", result.detail, result.remedy)


def _landlock() -> Finding:
    version = landlock_version()
    limits = [what for since, what in LANDLOCK_LIMITS if version >= since]
    if not limits:
        return Finding(
            "landlock",
            "note",
            "not in this kernel: devices do not limit themselves on top of their jails",
            "boot Linux 5.13 or newer with landlock among its security modules (lsm=landlock,...)",
        )
    return Finding("landlock", "ok", f"version {version}: devices give up {', '.join(limits)}")


def _cgroups() -> Finding:
    parent = cgroups.find_parent()
    if parent:
        return Finding(
            "cgroups",
            "ok",
            f"each process of a machine has its own limits of memory and threads, below {parent}",
        )
    why, remedy = _why_no_cgroups()
    return Finding("cgroups", "note", f"{why}: nothing limits the memory of a machine's processes", remedy)


def _why_no_cgroups() -> tuple[str, str]:
    if not os.path.exists(f"{cgroups.ROOT}/cgroup.controllers"):
        # Those of version 1 have a directory for each controller.
        if not os.path.exists("/run/systemd/system") and not os.path.exists(f"{cgroups.ROOT}/memory"):
            return (
                f"there are no cgroups of version 2 at {cgroups.ROOT}",
                f"mount -t cgroup2 cgroup2 {cgroups.ROOT}",
            )
        return (
            f"the cgroups at {cgroups.ROOT} are of version 1",
            "boot Linux with systemd.unified_cgroup_hierarchy=1 (without systemd: cgroup_no_v1=all)",
        )
    own = cgroups.own_path("self")
    missing = cgroups.missing_controllers()
    if missing:
        return (
            f"the kernel has no {' and no '.join(missing)} for cgroups of version 2",
            "boot Linux without cgroup_disable= and systemd.unified_cgroup_hierarchy=0",
        )
    if os.path.exists(f"/run/user/{os.getuid()}/systemd"):
        return (
            "this session's cgroup is not yours to divide",
            "systemd-run --user --scope --quiet cloche ... (instead of cloche ...)",
        )
    return f"you may make no cgroups with limits at your own ({own}) or above", _delegation(os.getuid())


def _delegation(uid: int) -> str:
    """Return the command by which root gives the caller's shell a cgroup to divide, where no systemd does that."""
    given = f"{cgroups.ROOT}/user-{uid}"
    on = "echo +memory +pids >"
    steps = (
        f"mkdir {given} {given}/shell",
        f"{on} {cgroups.ROOT}/cgroup.subtree_control",
        f"{on} {given}/cgroup.subtree_control",
        f"chown {uid} {given} {given}/cgroup.procs",
        f"echo {os.getppid()} > {given}/shell/cgroup.procs",
    )
    return f"sudo sh -c '{'; '.join(steps)}'"


def _ids(facts: HostFacts) -> Finding:
    if facts.ids is None:
        return Finding(
            "ids",
            "bad",
            "none that a domain of root's could have for itself",
            "run cloche as an ordinary user",
        )
    last = facts.ids.first + facts.ids.domains * IDS_PER_DOMAIN - 1
    taken = sorted(entry.pw_name for entry in pwd.getpwall() if facts.ids.first <= entry.pw_uid <= last)
    if taken:
        return Finding(
            "ids",
            "note",
            f"{', '.join(taken[:3])} may have the id of a process of root's domains ({facts.ids.first} to {last})",
            "give such accounts other ids",
        )
    return Finding("ids", "ok", f"root's domains run under {facts.ids.first} to {last}")


def _tools(facts: HostFacts) -> list[Finding]:
    findings = []
    major, minor = facts.tools.qemu_version
    if not facts.tools.qemu:
        findings.append(
            Finding("qemu", "bad", "not installed", "make setup (or install the package qemu-system-x86)")
        )
    elif (major, minor) < (7, 2):
        findings.append(
            Finding("qemu", "bad", f"version {major}.{minor} is too old", "install QEMU 7.2 or newer")
        )
    elif (major, minor) < (10, 0):
        detail = f"{facts.tools.qemu} {major}.{minor}: no file server in a template, no virtio sound"
        findings.append(
            Finding("qemu", "note", detail, "make setup (QEMU 10 comes from the distribution's backports)")
        )
    else:
        findings.append(Finding("qemu", "ok", f"{facts.tools.qemu} {major}.{minor}"))
    own = (
        ("warden", facts.tools.warden),
        ("agent", facts.tools.agent),
        ("fs", facts.tools.fs),
        ("disk", facts.tools.disk),
        ("net", facts.tools.net),
    )
    for name, path in own:
        findings.append(
            Finding(name, "ok", path) if path else Finding(name, "bad", "not built", "make setup")
        )
    for name in ("mkfs.ext4", "e2fsck"):
        path = find_system_tool(name)
        if path:
            findings.append(Finding(name, "ok", path))
        else:
            detail = "not installed: there are no profiles without it"
            findings.append(Finding(name, "note", detail, "install the package e2fsprogs"))
    if facts.tools.passt:
        findings.append(Finding("passt", "ok", facts.tools.passt))
    else:
        findings.append(Finding("passt", "note", "not installed: no --net user", "install the package passt"))
    if facts.tools.bwrap:
        findings.append(Finding("bwrap", "ok", facts.tools.bwrap))
    else:
        findings.append(
            Finding("bwrap", "note", "not installed: no bwrap driver", "install the package bubblewrap")
        )
    return findings


def _kernel() -> Finding:
    from cloche.kernel.store import find_kernel, verify_kernel

    try:
        kernel = find_kernel(None)
        verify_kernel(kernel)
    except ClocheError as error:
        return Finding("kernel", "bad", error.message, "cloche kernel build (or: cloche kernel fetch)")
    if kernel.machines[0] != "microvm":
        return Finding("kernel", "note", f"{kernel.id} ({kernel.kind}): starts slowly", "cloche kernel build")
    return Finding("kernel", "ok", f"{kernel.id} ({kernel.kind})")


def _emulation(facts: HostFacts) -> Finding:
    trial = try_run(facts, accelerator="tcg")
    if trial.works:
        return Finding("emulation", "ok", f"a program ran in an emulated machine after {trial.seconds:.2f} s")
    return Finding(
        "emulation",
        "bad",
        trial.why,
        "cloche run --accel tcg --boot-log --agent-log -- true shows where it stops",
    )


def _kvm(facts: HostFacts) -> Finding:
    if not os.path.exists("/dev/kvm"):
        return Finding(
            "kvm",
            "note",
            "there is no /dev/kvm: machines are emulated",
            "enable virtualization in the firmware, load kvm_intel or kvm_amd",
        )
    if not accel.kvm_accessible():
        return Finding(
            "kvm",
            "note",
            "/dev/kvm may not be opened by you: machines are emulated",
            # A machine of root's does not run as root: it is helped by a group.
            f"sudo setfacl -m u:{facts.user.name}:rw /dev/kvm"
            if facts.user.uid
            else "chgrp kvm /dev/kvm && chmod g+rw /dev/kvm",
        )
    trial = try_run(facts, accelerator="kvm", deadline_s=KVM_DEADLINE_S)
    accel.remember_kvm(trial.works, trial.why)
    if trial.works:
        return Finding("kvm", "ok", f"a program ran under KVM after {trial.seconds:.2f} s")
    return Finding(
        "kvm", "note", f"/dev/kvm opens but cannot run a guest ({trial.why}): machines are emulated"
    )
