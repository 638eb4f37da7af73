"""The supervisor's own filter: what it takes away is gone, and the rest is not."""

from __future__ import annotations

import errno
import subprocess
import sys
import tomllib
from pathlib import Path

#: Of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl of Linux).
NUMBERS = {
    "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
    "process_madvise": 440, "kcmp": 312, "pidfd_getfd": 438, "unshare": 272, "setns": 308, "clone3": 435, "clone": 56,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "swapon": 167, "swapoff": 168,
    "quotactl": 179, "quotactl_fd": 443, "acct": 163, "reboot": 169, "sethostname": 170, "setdomainname": 171,
    "syslog": 103, "vhangup": 153, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "keyctl": 250, "add_key": 248, "request_key": 249, "open_by_handle_at": 304,
    "fanotify_init": 300, "lookup_dcookie": 212, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "personality": 135,
    "uselib": 134, "ustat": 136, "sysfs": 139, "migrate_pages": 256, "move_pages": 279, "mbind": 237,
    "set_mempolicy": 238, "set_mempolicy_home_node": 450, "socket": 41, "socketpair": 53, "ioctl": 16,
}  # fmt: skip
#: Without the filter these do nothing; with -1 for everything they would.
ASKED = {
    "vhangup": None,  # it would hang up this terminal
    "iopl": "4",
    "reboot": "0:0:0:0",
    "personality": "0xffffffff",
    "clone": f"{0x1000_0000 | 17:#x}:0:0:0:0",
    "socket": "2:1:0",
    "socketpair": "2:1:0:0",
    "ioctl": "0:0x5412:0",
    "unshare": "0",
    "ptrace": "16:-1:0:0",
}
#: Kernels are built without these.
MAY_BE_ABSENT = {
    "kexec_load", "kexec_file_load", "uselib", "lookup_dcookie", "quotactl_fd", "sysfs", "userfaultfd", "acct",
    "init_module", "finit_module", "delete_module", "modify_ldt", "kcmp", "swapon", "swapoff", "process_madvise",
    "migrate_pages", "move_pages", "mbind", "set_mempolicy", "set_mempolicy_home_node", "fanotify_init",
    "perf_event_open", "quotactl", "iopl", "ioperm", "bpf", "keyctl", "add_key", "request_key",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", "process_vm_readv",
    "process_vm_writev", "syslog", "ustat",
}  # fmt: skip
#: The second numbers of some: x32.
X32 = 0x4000_0000


def named(project: Path) -> set[str]:
    """Return every call that the policy names."""
    policy = tomllib.loads((project / "policies" / "supervisor.toml").read_text())
    return {call for entry in policy["never"] for call in entry["calls"]}


def tried(project: Path, how: str, words: list[str]) -> list[int]:
    """Return what calls end with, in a process with the filter or without."""
    script = Path(__file__).with_name("confined.py")
    argv = [sys.executable, "-I", str(script), str(project / "src"), how, *words]
    ended = subprocess.run(argv, capture_output=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return [int(line) for line in ended.stdout.split()]


def word_for(call: str) -> str:
    """Return how a call is tried."""
    asked = ASKED.get(call, ":".join(["-1"] * 6))
    return f"{NUMBERS[call]}:{asked}" if asked is not None else f"{NUMBERS[call]}"


def test_every_call_that_is_named_fails(project: Path) -> None:
    """With the filter each fails as if the kernel had no such call, by both of its numbers; without it there is one."""
    calls = sorted(named(project))
    assert set(calls) == set(NUMBERS)
    words = [word_for(call) for call in calls]
    assert tried(project, "confined", words) == [errno.ENOSYS] * len(words)
    assert tried(project, "confined", [f"{X32 | NUMBERS['ptrace']}:0"]) == [errno.ENOSYS]
    harmless = [call for call in calls if call != "vhangup"]
    ended = tried(project, "free", [word_for(call) for call in harmless])
    absent = {call for call, error in zip(harmless, ended, strict=True) if error == errno.ENOSYS}
    assert absent <= MAY_BE_ABSENT


def test_what_a_supervisor_does_is_allowed(project: Path) -> None:
    """Unix sockets, processes, terminals and signals are left: the conditions take away no more than they say."""
    words = [
        f"{NUMBERS['socket']}:1:1:0",
        f"{NUMBERS['socketpair']}:1:1:0:-1",
        f"{NUMBERS['ioctl']}:0:0x5401:0",
        f"{NUMBERS['clone']}:17:0:0:0:0",
        "62:0:0",  # kill
    ]
    assert tried(project, "confined", words) == tried(project, "free", words)
    assert errno.ENOSYS not in tried(project, "confined", words)
