"""What a guest looks like from inside: like home, and nothing of the host that was not shared."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


def test_person_and_home(cloche: Runner) -> None:
    """The caller's name and ids, a fresh home, the caller's language and terminal."""
    script = (
        "id -un; id -u; id -g; echo $HOME; pwd; ls -A $HOME | grep -c secret; echo $LANG $TERM;"
        "touch ~/x && echo writable"
    )
    done = cloche.sh(script, env={"TERM": "xterm-256color"})
    user = cloche.user.entry
    lines = done.stdout.decode().split("\n")
    assert lines[:5] == [user.pw_name, str(user.pw_uid), str(user.pw_gid), user.pw_dir, user.pw_dir]
    assert lines[5:] == ["0", "C.UTF-8 xterm-256color", "writable", ""]


def test_system_is_roots_and_can_only_be_changed_in_its_own_layer(cloche: Runner) -> None:
    """/usr belongs to root with its setuid bits; root of the guest changes its own copy, the host's stays."""
    script = "stat -c '%u %g %a' /usr /usr/bin/passwd /etc/passwd; touch /usr/x 2>/dev/null || echo refused"
    done = cloche.sh(script)
    mode = f"{os.stat('/usr/bin/passwd').st_mode & 0o7777:o}"
    assert done.stdout.decode().split("\n") == ["0 0 755", f"0 0 {mode}", "0 0 644", "refused", ""]
    done = cloche.sh("id -u; echo changed > /usr/bin/cloche-mark; cat /usr/bin/cloche-mark", "--privileged")
    assert done.stdout == b"0\nchanged\n"
    assert not os.path.exists("/usr/bin/cloche-mark")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/ssh",
        "/etc/sudoers",
        "/etc/ssl/private",
        "/root/.profile",
        "/var/lib/dpkg",
        "/var/log/dpkg.log",
        "/home/ubuntu",
        "/boot/vmlinuz",
    ],
)
def test_secrets_do_not_exist(cloche: Runner, path: str) -> None:
    """Secret and private places of the host do not even have a name in the guest."""
    done = cloche.sh(f"ls -d {path}", "--privileged")
    assert done.returncode == 2


def test_nothing_of_the_host_shows(cloche: Runner, folder: Path) -> None:
    """No host processes, no host variables, no host name, no host files beside the shares."""
    (folder / "secret").write_text("x")
    script = (
        "hostname; env | cut -d= -f1 | sort | tr '\\n' ' '; ls /proc | grep -c '^[0-9]'; ls /home; ls "
        + str(folder)
    )
    done = cloche.sh(script, env={"AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/tmp/x", "DISPLAY": ":0"})
    lines = done.stdout.decode().split("\n")
    assert lines[0] != socket.gethostname()
    assert not {"AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "DISPLAY"} & set(lines[1].split())
    assert done.returncode == 2
    shadow = cloche.sh("cat /etc/shadow", "--privileged").stdout
    assert b"$" not in shadow
    assert b":*:" in shadow


def test_common_tools_work(cloche: Runner) -> None:
    """Python, perl, git, gcc, man and the linker's cache work as at home."""
    script = (
        "set -e; cd; python3 -c 'import ssl,sqlite3,ctypes; print(\"python\")'; perl -e 'print \"perl\\n\"';"
        "git init -q r; cd r; git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x;"
        "git log --oneline | wc -l;"
        "printf '#include <stdio.h>\\nint main(){puts(\"gcc\");}' > a.c; gcc a.c; ./a.out; man -w ls | grep -c ls;"
        "ldconfig -p 2>/dev/null | grep -c libc.so.6 >/dev/null; locale >/dev/null; date +%Z >/dev/null; echo end"
    )
    done = cloche.sh(script, timeout=300, env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    assert done.stdout.decode().split() == ["python", "perl", "1", "gcc", "1", "end"], done.stderr


def test_shares_read_only_and_writable(cloche: Runner, folder: Path) -> None:
    """A share is read-only unless :rw is said, and what is written belongs to the caller."""
    (folder / "ro").mkdir()
    (folder / "rw").mkdir()
    (folder / "ro" / "file").write_text("hello\n")
    if os.geteuid() == 0:
        for path in (folder / "ro", folder / "rw", folder / "ro" / "file"):
            os.chown(path, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    script = (
        f"cat {folder}/ro/file; (echo x > {folder}/ro/file) 2>/dev/null || echo refused; "
        f"rm -f {folder}/ro/file 2>/dev/null || echo kept;"
        f"echo new > /there/made; mkdir /there/dir; ls -l /there | wc -l"
    )
    done = cloche.sh(script, "--share", f"{folder}/ro", "--share", f"{folder}/rw:rw:at=/there")
    assert done.stdout.decode().split("\n") == ["hello", "refused", "kept", "3", ""], done.stderr
    assert (folder / "rw" / "made").read_text() == "new\n"
    status = (folder / "rw" / "made").stat()
    assert (status.st_uid, status.st_gid) == (cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)


def test_here_is_the_working_directory(cloche: Runner, folder: Path) -> None:
    """--here shares the working directory at the same path, writable, and the program starts in it."""
    done = cloche.sh("pwd; echo made > made; ls", "--here", cwd=folder)
    assert done.stdout.decode().split() == [str(folder), "made"], done.stderr
    assert (folder / "made").read_text() == "made\n"


def test_links_that_leave_a_share_lead_nowhere(cloche: Runner, folder: Path) -> None:
    """A symbolic link of a share is followed in the guest, where the host's files are not."""
    secret = folder / "secret"
    secret.write_text("secret of the host")
    share = folder / "share"
    share.mkdir()
    (share / "link").symlink_to(secret)
    (share / "up").symlink_to("../secret")
    done = cloche.sh(f"cat {share}/link {share}/up {share}/../secret", "--share", str(share))
    assert done.returncode == 1
    assert b"secret of the host" not in done.stdout


def test_include_copies_single_files(cloche: Runner, folder: Path) -> None:
    """--include puts a copy into the guest; changing it changes nothing on the host."""
    source = folder / "settings"
    source.write_text("host\n")
    done = cloche.sh(
        "cat /etc/app.conf; echo guest > /etc/app.conf; cat /etc/app.conf",
        "--privileged",
        "-i",
        f"/etc/app.conf={source}",
    )
    assert done.stdout == b"host\nguest\n", done.stderr
    assert source.read_text() == "host\n"


def test_workdir_user_and_environment(cloche: Runner) -> None:
    """-w, -u and -e do what they say."""
    done = cloche(
        "-w", "/usr/share", "-u", "nobody", "-e", "COLOR=blue", "sh", "-c", "pwd; id -un; echo $COLOR"
    )
    assert done.stdout == b"/usr/share\nnobody\nblue\n", done.stderr


def test_limits(cloche: Runner) -> None:
    """--memory, --cpus and --pids are what the guest has."""
    done = cloche.sh(
        "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; cat /proc/swaps | wc -l", "-c", "2", "-m", "256M"
    )
    cpus, memory_kib, swaps = done.stdout.split()
    assert (int(cpus), int(swaps)) == (2, 0)
    assert 150 * 1024 < int(memory_kib) <= 256 * 1024
    done = cloche.sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all", "--pids", "5")
    assert b"all" not in done.stdout


def test_a_limit_of_processes_is_the_programs_own(cloche: Runner) -> None:
    """--pids counts the program and all below it; within the limit nothing is refused."""
    script = "for i in 1 2 3 4; do sleep 1000 & done; echo all; kill $!; wait $!; kill 0"
    assert cloche.sh(script, "--pids", "5").stdout == b"all\n"
    done = cloche.sh(script, "--pids", "4")
    assert done.stdout == b""
    assert b"fork" in done.stderr


def test_a_full_disk_is_the_programs_error(cloche: Runner) -> None:
    """Who fills the guest's files in a small machine is told that no space is left; the machine goes on."""
    done = cloche.sh("cat /dev/zero > /tmp/full; echo still here", "--memory", "128M")
    assert (done.returncode, done.stdout) == (0, b"still here\n"), done.stderr
    assert b"No space left on device" in done.stderr


def test_out_of_memory_is_the_guests(cloche: Runner) -> None:
    """A program that uses more memory than the machine has is killed in the guest, and the user is told."""
    done = cloche("-m", "128M", "tail", "/dev/zero")
    assert done.returncode == 137
    assert b"128 MiB of memory were used up" in done.stderr
    assert b"--memory" in done.stderr


def test_program_that_survives_its_childs_lack_of_memory(cloche: Runner) -> None:
    """Only the greedy one is killed; the program goes on in its machine and ends as it likes."""
    done = cloche.sh("tail /dev/zero; echo $?; exit 3", "-m", "128M")
    assert (done.returncode, done.stdout) == (3, b"137\n")
    assert b"used up" not in done.stderr


def test_the_guest_never_swaps(cloche: Runner) -> None:
    """The guest has no swap, and its kernel cannot be given any, not even by its root."""
    script = (
        "import ctypes, errno; libc = ctypes.CDLL(None, use_errno=True);"
        "libc.swapon(b'/etc/passwd', 0); print(errno.errorcode[ctypes.get_errno()])"
    )
    assert cloche("--privileged", "python3", "-c", script).stdout == b"ENOSYS\n"


def test_time_limit(cloche: Runner) -> None:
    """--timeout ends the program with status 124."""
    done = cloche("--timeout", "1s", "sleep", "1000")
    assert done.returncode == 124
    assert b"time limit" in done.stderr
