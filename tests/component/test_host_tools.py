"""Programs and facts of the host: found, asked once, remembered, and not believed when the memory is damaged."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from cloche.errors import HostError, MissingToolError
from cloche.host import accel, facts, tools, xdg

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide cloche's cache directory, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cloche"


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """Provide a program that says it is QEMU 9.1, and counts how often it was asked."""
    return make_qemu(tmp_path / "qemu", "QEMU emulator version 9.1.2 (Debian 1:9.1.2+ds-1)")


def make_qemu(path: Path, answer: str, status: int = 0) -> Path:
    """Make a program that gives this answer to --version."""
    path.write_text(f"#!/bin/sh\necho asked >> {path}.log\ncat <<'EOF'\n{answer}\nEOF\nexit {status}\n")
    path.chmod(0o755)
    return path


def times_asked(qemu: Path) -> int:
    """Return how often the program was started."""
    log = Path(f"{qemu}.log")
    return log.read_text().count("asked") if log.exists() else 0


def test_the_version_is_asked_once(cache: Path, qemu: Path) -> None:
    """The first time the program is started, later the answer comes from the cache."""
    assert tools.qemu_version(str(qemu)) == (9, 1)
    assert tools.qemu_version(str(qemu)) == (9, 1)
    assert times_asked(qemu) == 1
    assert (cache / "qemu-version").exists()


def test_another_program_is_asked_again(cache: Path, qemu: Path) -> None:
    """When the file has changed, by an upgrade for example, it is asked again."""
    assert tools.qemu_version(str(qemu)) == (9, 1)
    make_qemu(qemu, "QEMU emulator version 10.0.2")
    assert tools.qemu_version(str(qemu)) == (10, 0)
    assert tools.qemu_version(str(qemu)) == (10, 0)
    assert times_asked(qemu) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b"garbage",
        b"KEY",
        b"KEY\n",
        b"KEY\nnine.one",
        "KEY\n².³".encode(),
        b"KEY\n9",
        b"\0" * 100_000,
    ],
)
def test_a_damaged_memory_is_not_believed(cache: Path, qemu: Path, damage: bytes) -> None:
    """Whatever the cache file holds instead of an answer, the program is asked and the file mended."""
    tools.qemu_version(str(qemu))
    file = cache / "qemu-version"
    key = file.read_bytes().partition(b"\n")[0]
    file.write_bytes(damage.replace(b"KEY", key))
    assert tools.qemu_version(str(qemu)) == (9, 1)
    assert times_asked(qemu) == 2
    assert tools.qemu_version(str(qemu)) == (9, 1)
    assert times_asked(qemu) == 2


def test_a_memory_that_cannot_be_read_or_written(cache: Path, qemu: Path) -> None:
    """Without a usable cache the program is asked every time, and nothing fails."""
    (cache / "qemu-version").mkdir(parents=True)
    cache.chmod(0o700)
    assert [tools.qemu_version(str(qemu)) for _ in range(2)] == [(9, 1), (9, 1)]
    assert times_asked(qemu) == 2


def test_a_cache_that_is_not_trusted(cache: Path, qemu: Path) -> None:
    """A cache directory that is open to others is not written to, and nothing fails."""
    cache.mkdir()
    cache.chmod(0o777)
    assert tools.qemu_version(str(qemu)) == (9, 1)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "answer", ["", "hello", "QEMU emulator version", "QEMU emulator version x.y", "QEMU emulator version 9"]
)
def test_what_does_not_say_its_version(cache: Path, tmp_path: Path, answer: str) -> None:
    """A program that gives no version has none, and that is not remembered."""
    qemu = make_qemu(tmp_path / "qemu", answer)
    assert tools.qemu_version(str(qemu)) == (0, 0)
    assert tools.qemu_version(str(qemu)) == (0, 0)
    assert times_asked(qemu) == 2


def test_what_cannot_be_started(cache: Path, tmp_path: Path) -> None:
    """A file that is missing, or is no program, has no version."""
    assert tools.qemu_version(str(tmp_path / "missing")) == (0, 0)
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF\0\0")
    broken.chmod(0o755)
    assert tools.qemu_version(str(broken)) == (0, 0)


def test_programs_of_the_distribution_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program is found where distributions put it, whatever PATH says; a directory of that name is none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sh").symlink_to("/bin/sh")
    assert os.path.realpath(tools.find_system_tool("sh")) == os.path.realpath("/bin/sh")
    assert tools.find_system_tool("sh") != str(tmp_path / "sh")
    assert tools.find_system_tool("no-such-program") == ""
    monkeypatch.setattr(tools, "_SYSTEM_PATH", (str(tmp_path),))
    (tmp_path / "tool").mkdir()
    assert tools.find_system_tool("tool") == ""


def test_missing_binaries_are_named() -> None:
    """A binary of cloche's own that was not built is an error that says where it was looked for, and what makes it."""
    with pytest.raises(MissingToolError) as caught:
        tools.require_own_binary("cloche-nothing")
    assert "build/bin" in caught.value.message
    assert "make setup" in str(caught.value.hint)
    assert tools.find_own_binary("cloche-nothing") == ""


def open_device(cache: Path) -> Path:
    """Return a file that everybody may open, in place of the device."""
    device = cache.with_name("kvm")
    device.touch()
    device.chmod(0o666)
    return device


def test_the_trial_of_kvm_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome holds for this host kernel; damaged or another kernel's, it is as if never tried."""
    monkeypatch.setattr(accel, "_DEVICE", str(open_device(cache)))
    assert accel.kvm_result() is None
    accel.remember_kvm(True, "ran after 0.3 s")
    assert accel.kvm_result() is True
    accel.remember_kvm(False, "no answer\nworks\udcff")
    assert accel.kvm_result() is False
    file = cache / "kvm-trial"
    for damage in (b"", b"\xff", b"works", b"6.0 other\nworks: x", b"\n\n"):
        file.write_bytes(damage)
        assert accel.kvm_result() is None


def test_without_the_device_there_is_no_kvm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device that can be opened, what was remembered does not count."""
    device = open_device(cache)
    monkeypatch.setattr(accel, "_DEVICE", str(device))
    accel.remember_kvm(True, "")
    assert accel.kvm_result() is True
    if os.getuid() == 0:
        # A machine of root's runs under another id, so what only root may open is no use to it.
        device.chmod(0o600)
        assert accel.kvm_result() is False
    monkeypatch.setattr(accel, "_DEVICE", "/nonexistent")
    assert accel.kvm_result() is False


def test_a_trial_that_cannot_be_remembered(cache: Path) -> None:
    """A cache that cannot be written to is told in a sentence."""
    (cache / "kvm-trial").mkdir(parents=True)
    cache.chmod(0o700)
    with pytest.raises(HostError, match="kvm-trial"):
        accel.remember_kvm(True, "")


def test_facts_are_this_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The facts name the caller, the working directory, the mask and the environment as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOCHE_ODD", os.fsdecode(b"\xff"))
    before = os.umask(0o027)
    try:
        found = facts.collect_facts()
    finally:
        os.umask(before)
    entry = pwd.getpwuid(os.getuid())
    assert (found.user.name, found.user.uid, found.user.gid) == (entry.pw_name, os.getuid(), os.getgid())
    assert found.cwd == os.path.realpath(tmp_path)
    assert found.umask == 0o027
    assert found.environment[b"CLOCHE_ODD"] == b"\xff"
    assert found.paths["/usr"].kind == "dir"
    assert found.cpus >= 1
    assert found.memory_mib > 64
    assert found.nofile_hard > 0


def test_ignored_signals_and_niceness_are_facts() -> None:
    """What the caller ignores is seen, but for the two signals that Python ignores by itself; so is its niceness."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        ignoring = facts.collect_facts()
    finally:
        signal.signal(signal.SIGUSR2, before)
    bit = 1 << (signal.SIGUSR2 - 1)
    assert ignoring.ignored & bit
    plain = facts.collect_facts()
    assert plain.ignored == ignoring.ignored & ~bit
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    assert not plain.ignored & 1 << (signal.SIGPIPE - 1)
    assert plain.nice == os.nice(0)


def test_links_are_seen_as_links() -> None:
    """A link is a fact of its own with its target, whether or not it leads anywhere."""
    found = facts.collect_facts().paths
    for path, fact in found.items():
        assert fact.kind == ("link" if os.path.islink(path) else "dir" if os.path.isdir(path) else "file")
        assert fact.target == (os.readlink(path) if fact.kind == "link" else "")


def test_a_vanished_working_directory_is_the_root(tmp_path: Path) -> None:
    """Whoever stands in a directory that is gone stands in the root, for cloche."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.host.facts import collect_facts\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "print(collect_facts().cwd)\n"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(SOURCE)]
    assert subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True).stdout == b"/\n"


def test_a_caller_without_a_name(tmp_path: Path) -> None:
    """A user id that the user database does not know gets a name, a home and a shell."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.host import facts\n"
        "os.getuid = lambda: 54321; os.getgid = lambda: 54322\n"
        "print(*facts.find_caller()[:6])\n"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(SOURCE)]
    told = subprocess.run(argv, check=True, capture_output=True).stdout
    assert told == b"user54321 54321 54322 54322 /home/user54321 /bin/sh\n"


@pytest.mark.parametrize(
    "directory, uid, expected",
    [
        ("/home/alice", 1000, "/home/alice"),
        ("/home/alice/", 1000, "/home/alice"),
        ("/data/home/alice", 1000, "/data/home/alice"),
        ("/var/lib/alice", 1000, "/var/lib/alice"),
        ("/nonexistent", 65534, "/nonexistent"),
        ("/root", 0, "/root"),
        ("/root", 1000, "/home/alice"),
        ("", 1000, "/home/alice"),
        ("relative", 1000, "/home/alice"),
        ("/", 1000, "/home/alice"),
        ("//", 1000, "/home/alice"),
        ("/home", 1000, "/home/alice"),
        ("/usr/games", 5, "/home/alice"),
        ("/bin", 2, "/home/alice"),
        ("/dev", 3, "/home/alice"),
        ("/run/ircd", 39, "/home/alice"),
        ("/var", 1000, "/home/alice"),
        ("/tmp", 1000, "/home/alice"),
        ("/etc/x", 1000, "/home/alice"),
        ("/home/alice/../../usr", 1000, "/home/alice"),
        ("/opt/alice", 1000, "/home/alice"),
    ],
)
def test_the_home_in_the_guest(directory: str, uid: int, expected: str) -> None:
    """The home is where it is on the host, but never at or in a directory that belongs to the system."""
    assert facts.guest_home(directory, "alice", uid) == expected


def test_every_user_of_this_host_gets_a_home_of_their_own() -> None:
    """For no line of the user database would a private home close a directory of the system."""
    for entry in pwd.getpwall():
        home = facts.guest_home(entry.pw_dir, entry.pw_name, entry.pw_uid)
        assert home.startswith("/")
        assert home not in ("/", "/home", "/usr", "/bin", "/usr/sbin", "/dev", "/var", "/tmp")


def test_private_directories(tmp_path: Path) -> None:
    """A directory is private if it is the caller's and others cannot write to it."""
    tmp_path.chmod(0o755)
    assert xdg.is_private_directory(str(tmp_path))
    tmp_path.chmod(0o775)
    assert not xdg.is_private_directory(str(tmp_path))
    assert not xdg.is_private_directory(str(tmp_path / "missing"))
    assert not xdg.is_private_directory(__file__)
