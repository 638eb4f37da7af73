"""Going back to a start of a real machine, and a profile that was made elsewhere."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
from typing import TYPE_CHECKING

from support.errors import check_error

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


def starts(cloche: Runner, name: str) -> list[dict[str, object]]:
    """Return what is said of the starts of a profile."""
    found: list[dict[str, object]] = json.loads(cloche("profile", "log", "--json", name).stdout)
    return found


def test_a_profile_goes_back_to_a_start_and_elsewhere(cloche: Runner, folder: Path) -> None:
    """What a run has changed is taken back, also when it or its disk was killed; an export has what was there."""
    made = cloche("profile", "new", "--size", "512M", "back")
    assert made.returncode == 0, made.stderr
    for number in ("1", "2"):
        ended = cloche.sh(f"echo {number} >> ~/file; cat ~/file", "-p", "back")
        assert (ended.returncode, ended.stdout) == (0, b"1\n2\n"[: 2 * int(number)]), ended.stderr
    # The third is killed with all its processes, after its disk was: whoever comes next knows what to do.
    script = "echo 3 >> ~/file; rm /usr/bin/env; sync; echo synced; read x"
    with cloche.popen("-p", "back", "--privileged", "sh", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"synced\n"
        check_error(cloche("profile", "revert", "back"), 125, "the profile back is in use", "joins it")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    listed = starts(cloche, "back")
    assert [(start["number"], start["problem"]) for start in listed] == [(3, ""), (2, ""), (1, "")]
    assert listed[1]["argv"] == ["sh", "-c", "echo 2 >> ~/file; cat ~/file"]
    done = cloche("profile", "revert", "back")
    assert (done.returncode, done.stdout[:33]) == (0, b"back is what it was before start 3"[:33]), done.stderr
    ended = cloche.sh("cat ~/file; ls /usr/bin/env", "-p", "back")
    assert ended.stdout == b"1\n2\n/usr/bin/env\n", ended.stderr
    file = folder / "back.profile"
    assert cloche("profile", "export", "back", str(file)).returncode == 0
    assert cloche("profile", "revert", "back", "2").returncode == 0
    assert cloche("profile", "import", str(file), "elsewhere").returncode == 0
    for name, said in (("back", b"1\n"), ("elsewhere", b"1\n2\n")):
        ended = cloche.sh("cat ~/file", "-p", name)
        assert ended.stdout == said, ended.stderr
        assert cloche("profile", "delete", name).returncode == 0


def test_a_start_that_changes_too_much_is_given_up_and_says_so(cloche: Runner) -> None:
    """The guest's writes all succeed; the run ends with a line, and the list says why one cannot go back."""
    assert cloche("profile", "new", "--size", "512M", "much").returncode == 0
    script = "dd if=/dev/urandom of=$HOME/data bs=1M count=24 2>/dev/null; sync; sha256sum ~/data"
    first = cloche.sh(script, "-p", "much")
    assert first.returncode == 0, first.stderr
    settings = cloche.user.home / ".local/share/cloche/profiles/much/cloche.toml"
    cloche.user.run(["tee", str(settings)], input=b'version = 1\nkept_room = "1M"\n').check_returncode()
    script = "dd if=/dev/zero of=$HOME/data bs=1M count=24 conv=notrunc,fsync 2>/dev/null; sha256sum ~/data"
    second = cloche.sh(script, "-p", "much")
    assert second.returncode == 0
    assert second.stdout != first.stdout
    assert (
        b"this start of the profile much cannot be taken back: more was changed than is kept" in second.stderr
    )
    assert starts(cloche, "much")[0]["problem"] == "more was changed than is kept"
    check_error(cloche("profile", "revert", "much"), 125, "more was changed than is kept", "profile log")
    assert cloche("profile", "delete", "much").returncode == 0


def archive(path: Path, *members: tuple[str, bytes]) -> None:
    """Make a tar archive of somebody who means no good."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_tar_archive_becomes_a_profile(cloche: Runner, folder: Path) -> None:
    """Its files are in the guest's tree, none is outside of it, and what is damaged or too much leaves nothing."""
    good, bad, bomb, out = (folder / f"{name}.tar.gz" for name in ("tools", "bad", "bomb", "out"))
    archive(good, ("opt/tool/file", b"kept"), ("/etc/motd", b"hello"))
    bad.write_bytes(good.read_bytes()[:-40])
    archive(bomb, ("opt/zeros", bytes(200 << 20)))
    archive(out, ("../../../../outside", b"out"))
    done = cloche("profile", "import", str(good))
    assert (done.returncode, done.stdout) == (0, b"tools\n"), done.stderr
    ended = cloche.sh("cat /opt/tool/file /etc/motd; ls /usr/bin/env", "-p", "tools")
    assert ended.stdout == b"kepthello/usr/bin/env\n", ended.stderr
    for path, options in ((bad, ()), (bomb, ("--most", "64M")), (out, ())):
        done = cloche("profile", "import", *options, str(path), "none")
        assert done.returncode == 125
        assert b"cannot be unpacked" in done.stderr
    names = [entry["name"] for entry in json.loads(cloche("profile", "list", "--json").stdout)]
    assert "none" not in names
    assert cloche("profile", "delete", "tools").returncode == 0
    left = os.listdir(cloche.user.home / ".local/share/cloche/profiles")
    assert [entry for entry in left if entry.startswith(".")] == []
