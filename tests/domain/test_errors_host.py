"""A host that lacks something: disk space, namespaces, QEMU, a home. One sentence, one hint, and nothing stays."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.errors import check_error
from support.hosts import bind, limited_inodes, small_disk, sysctl

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.hosts import ChangedHost
    from support.users import OrdinaryUser

QEMU = "/usr/bin/qemu-system-x86_64"
_SYSTEM = "/usr/lib/x86_64-linux-gnu"

#: Does what QEMU does at first, and fails. It is a binary: a script's interpreter does not exist in QEMU's jail.
_BROKEN_QEMU = """
#include <stdio.h>
#include <string.h>
int main(int count, char **words)
{
    if (count > 1 && !strcmp(words[1], "--version"))
        return puts("QEMU emulator version " VERSION " (test)") < 0;
    fputs("qemu-system-x86_64: cannot set up guest memory: \\033[31mno\\n", stderr);
    return 1;
}
"""


@pytest.fixture
def own_directory(host: ChangedHost, folder: Path) -> Callable[[str], Path]:
    """Return a function that makes a private directory of the user's."""

    def make(name: str) -> Path:
        path = folder / name
        path.mkdir(mode=0o700)
        os.chown(path, host.user.entry.pw_uid, host.user.entry.pw_gid)
        return path

    return make


@pytest.fixture
def kernel(ordinary: OrdinaryUser) -> str:
    """Return the directory of the user's built kernel."""
    kernels = Path(ordinary.home, ".cache", "cloche", "kernels")
    return str(next(path for path in sorted(kernels.iterdir()) if (path / "vmlinux").exists()))


# Full disks


def test_full_cache_at_first_use(
    host: ChangedHost, own_directory: Callable[[str], Path], kernel: str
) -> None:
    """Without room for the initramfs the file and the reason are named, and no half of it is left."""
    disk = own_directory("disk")
    cache = {"XDG_CACHE_HOME": str(disk)}
    for size, filled in ((4096, True), (1 << 20, True), (64 << 10, False)):
        done = host.on(*small_disk(disk, size, filled=filled))("--kernel", kernel, "true", env=cache)
        check_error(done, 125, "cannot write", str(disk), "No space left on device", "XDG_CACHE_HOME")
    listing = host.on(*small_disk(disk, 64 << 10, filled=False)).sh_on_host(
        '"$0" --kernel "$1" true; find "$2" -name "*.cpio*"', host.program, kernel, str(disk), env=cache
    )
    assert listing.stdout == b""


def test_cache_that_is_full_later(
    host: ChangedHost, own_directory: Callable[[str], Path], kernel: str
) -> None:
    """When everything was made, a full disk keeps nothing from running, and is not spoken of."""
    disk = own_directory("disk")
    done = host.on(*small_disk(disk, 4 << 20, filled=False)).sh_on_host(
        '"$0" --kernel "$1" true || exit 1; head -c 9M /dev/zero > "$2/filler"; rm "$2/cloche/qemu-version"; '
        'exec "$0" --kernel "$1" echo again',
        *(host.program, kernel, str(disk)),
        env={"XDG_CACHE_HOME": str(disk)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"again\n"
    assert b"cloche:" not in done.stderr.replace(b"cloche: KVM", b"")


def test_full_runtime_directory(host: ChangedHost, own_directory: Callable[[str], Path]) -> None:
    """Sockets need no bytes; where not even an empty file can be made, the directory is named."""
    disk = own_directory("disk")
    runtime = {"XDG_RUNTIME_DIR": str(disk)}
    assert host.on(*small_disk(disk, 4096, filled=True))("true", env=runtime).returncode == 0
    for inodes in (1, 2, 3, 4, 5):
        done = host.on(limited_inodes(disk, inodes))("true", env=runtime)
        check_error(done, 125, str(disk), "No space left on device")


def test_full_share(host: ChangedHost, own_directory: Callable[[str], Path]) -> None:
    """A share without room is the program's own error, as on the host."""
    disk = own_directory("disk")
    done = host.on(*small_disk(disk, 64 << 10, filled=False))(
        *("--share", f"{disk}:rw", "sh", "-c", 'head -c 1000000 /dev/zero > "$0/file"', str(disk))
    )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"cloche:" not in done.stderr


# QEMU


def test_full_disk_below_an_image(host: ChangedHost, own_directory: Callable[[str], Path]) -> None:
    """A sparse image that the host has no room for: the guest's program gets the error, and the image can be read."""
    disk = own_directory("disk")
    script = """
    truncate -s 64M "$1/image"; /usr/sbin/mkfs.ext4 -q -O ^has_journal -E root_owner "$1/image"
    write="echo small > /m/small; sync; dd if=/dev/zero of=/m/big bs=1M count=20 conv=fsync 2>&1; echo goes on"
    "$0" "--mount=host-image:$1/image,at=/m,rw" sh -c "$write"
    "$0" "--mount=host-image:$1/image,at=/m" cat /m/small
    """
    done = host.on(*small_disk(disk, 6 << 20, filled=False)).sh_on_host(script, host.program, str(disk))
    assert done.returncode == 0, done.stderr
    assert b"error" in done.stdout
    assert done.stdout.endswith(b"goes on\nsmall\n"), done.stdout


def broken_qemu(folder: Path, version: str) -> Path:
    """Return a program that says it is QEMU and fails at everything else."""
    program, source = folder / f"qemu-{version}", folder / "qemu.c"
    source.write_text(_BROKEN_QEMU)
    flags = ["-static", f'-DVERSION="{version}"']
    subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True)
    program.chmod(0o755)
    return program


def test_missing_qemu(host: ChangedHost) -> None:
    """Without QEMU its package is named."""
    done = host.on(bind(Path("/dev/null"), QEMU))("true")
    check_error(done, 125, "QEMU is not installed", "qemu-system-x86")


def test_old_qemu(host: ChangedHost, folder: Path) -> None:
    """A QEMU older than 7.2 is refused with both versions."""
    done = host.on(bind(broken_qemu(folder, "6.2.0"), QEMU))("true")
    check_error(done, 125, "QEMU 6.2 is too old", "7.2 or newer")


def test_qemu_of_no_version(host: ChangedHost, folder: Path) -> None:
    """What does not say its version as QEMU does is not started."""
    done = host.on(bind(broken_qemu(folder, "banana"), QEMU))("true")
    check_error(done, 125, "does not say its version", "--version")


def test_qemu_that_dies_at_its_start(host: ChangedHost, folder: Path) -> None:
    """Its last words are shown, escaped."""
    done = host.on(bind(broken_qemu(folder, "10.0.2"), QEMU))("true")
    check_error(done, 125, "vmm exited with status 1", "cannot set up guest memory: \\x1b[31mno", "doctor")


def test_qemu_that_cannot_be_executed(host: ChangedHost, folder: Path) -> None:
    """A QEMU whose loader does not exist says which step failed."""
    program = folder / "qemu"
    program.write_bytes(
        Path(QEMU).read_bytes().replace(b"/ld-linux-x86-64.so.2\0", b"/ld-linux-x86-64.so.9\0")
    )
    program.chmod(0o755)
    # Asking for the version fails, too, so that the cached answer for another file cannot help.
    check_error(host.on(bind(program, QEMU))("true"), 125, "does not say its version")


@pytest.mark.parametrize("name", ["cloche-warden", "cloche-fs", "cloche-agent"])
def test_own_programs_that_are_missing_or_damaged(host: ChangedHost, folder: Path, name: str) -> None:
    """Each of cloche's own programs is named when it is missing, and `make setup` mends what is damaged."""
    program = host.user.project / "build" / "bin" / name
    check_error(host.on(bind(Path("/dev/null"), program))("true"), 125, name, "make setup")
    text = folder / "text"
    text.write_text("no program\n")
    text.chmod(0o755)
    check_error(host.on(bind(text, program))("true"), 125)


@pytest.mark.long
@pytest.mark.skipif(
    platform.freedesktop_os_release().get("VERSION_ID") != "12", reason="only Debian 12 has QEMU 7.2"
)
def test_qemu_7_2(host: ChangedHost, qemu_7_2: Path, folder: Path) -> None:
    """The oldest QEMU runs programs, shares and terminals, with either kernel; doctor names what it lacks."""
    old = host.on(
        bind(qemu_7_2 / "bin" / "qemu-system-x86_64", QEMU),
        bind(qemu_7_2 / "lib" / "x86_64-linux-gnu" / "qemu", f"{_SYSTEM}/qemu"),
        bind(qemu_7_2 / "share" / "qemu", "/usr/share/qemu"),
    )
    assert old("true").returncode == 0
    (folder / "file").write_text("shared\n")
    shared = old("--share", f"{folder}:rw", "sh", "-c", 'cat "$0/file"; echo new > "$0/new"', str(folder))
    assert (shared.returncode, shared.stdout) == (0, b"shared\n")
    assert (folder / "new").read_text() == "new\n"
    terminal = old.run_on_host("script", "-qec", f"{old.program} tty", "/dev/null")
    assert terminal.returncode == 0
    assert b"/dev/pts/" in terminal.stdout
    doctor = old("doctor")
    assert b"7.2: no file server in a template, no virtio sound" in doctor.stdout, doctor.stdout


# Namespaces


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net"])
def test_no_namespaces(host: ChangedHost, kind: str) -> None:
    """Where a kind of namespace is forbidden, the setting that forbids it is the hint."""
    # The one the changed host itself is made of counts too.
    done = host.on(sysctl(f"user/max_{kind}_namespaces", "0"))("true")
    check_error(
        done, 125, "namespace", "this host allows no more of them", f"sysctl -w user.max_{kind}_namespaces"
    )


def test_doctor_says_what_forbids_namespaces(host: ChangedHost) -> None:
    """`cloche doctor` names the same command, and fails."""
    done = host.on(sysctl("user/max_user_namespaces", "0"))("doctor")
    assert done.returncode != 0
    assert b"sysctl -w user.max_user_namespaces" in done.stdout


# Directories


@pytest.mark.parametrize("mask", ["777", "077"])
def test_any_mask_of_the_callers(host: ChangedHost, mask: str) -> None:
    """The caller's file mode mask is the program's, and does not hinder cloche."""
    done = host.sh_on_host(f'umask {mask}; exec "$0" sh -c umask', host.program)
    assert (done.returncode, done.stdout) == (0, f"0{mask}\n".encode()), done.stderr


def test_unwritable_directories(host: ChangedHost, own_directory: Callable[[str], Path], kernel: str) -> None:
    """A cache or a runtime directory that the caller may not write to is named, with the variable that moves it."""
    closed = own_directory("closed")
    closed.chmod(0o500)
    cache = host("--kernel", kernel, "true", env={"XDG_CACHE_HOME": str(closed)})
    check_error(cache, 125, str(closed), "Permission denied", "XDG_CACHE_HOME")
    runtime = host("true", env={"XDG_RUNTIME_DIR": str(closed)})
    check_error(runtime, 125, str(closed), "Permission denied", "XDG_RUNTIME_DIR")


@pytest.mark.parametrize("home", ["", "relative"])
def test_no_home(host: ChangedHost, home: str) -> None:
    """Without HOME, or with one that is no path, the home of passwd counts."""
    assert host("true", env={"HOME": home}).returncode == 0


def test_home_that_does_not_exist(host: ChangedHost, kernel: str) -> None:
    """A home that cannot be made is named when something is to be written there."""
    check_error(host("true", env={"HOME": "/no/such/home"}), 125, "no guest kernel")
    done = host("--kernel", kernel, "true", env={"HOME": "/no/such/home"})
    check_error(done, 125, "/no/such/home", "XDG_CACHE_HOME")


@pytest.mark.parametrize("runtime", ["", "relative", "/no/such/directory", "/etc/passwd", "/"])
def test_runtime_directory_that_cannot_be_used(host: ChangedHost, runtime: str) -> None:
    """A runtime directory that is missing, no directory or somebody else's is not used; the cache is."""
    assert host("true", env={"XDG_RUNTIME_DIR": runtime}).returncode == 0


def test_a_jail_that_cannot_be_built(host: ChangedHost) -> None:
    """Without network namespaces nothing starts, unless the user gives them up in so many words, at every run."""
    poor = host.on(sysctl("user/max_net_namespaces", "0"))
    check_error(poor("true"), 125, "cannot start", "--insecure-no-jail=namespaces")
    for _ in range(2):
        done = poor("--insecure-no-jail=namespaces", "echo", "inside")
        assert (done.returncode, done.stdout) == (0, b"inside\n")
        assert b"the jails are without the network, ipc, uts and cgroup namespaces" in done.stderr
