"""Looking at what a user wants to share or include, before anything is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cloche.errors import ClocheError, ShareError, UsageError
from cloche.host.images import resolve_disk
from cloche.host.paths import resolve_include, resolve_share, share_here
from cloche.model.request import Disk, Include, Share
from support.disks import empty_qcow2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.users import OrdinaryUser


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the working directory, which has no link in its path."""
    place = tmp_path.resolve() / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    return place


@pytest.fixture
def nowhere(place: Path) -> Iterator[None]:
    """Let the working directory vanish."""
    gone = place / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    yield
    os.chdir(place)


def test_a_share_of_a_directory(place: Path) -> None:
    """A directory is shared read-only at the path it was called by, absolute or not."""
    (place / "dir").mkdir()
    for word in ("dir", "./dir", "dir/", "dir/../dir", f"{place}/dir", f"{place}//dir/."):
        assert resolve_share(word) == Share(f"{place}/dir", f"{place}/dir", False)


def test_options_of_a_share(place: Path) -> None:
    """Writability and place are taken from the word, the place made normal."""
    (place / "dir").mkdir()
    assert resolve_share("dir:rw") == Share(f"{place}/dir", f"{place}/dir", True)
    assert resolve_share("dir:at=//x/./y/../z/:rw") == Share(f"{place}/dir", "/x/z", True)
    with pytest.raises(UsageError):
        resolve_share("dir:at=relative")
    with pytest.raises(UsageError):
        resolve_share("dir:at=/../x")


@pytest.mark.parametrize("name", ["a:b", "with space", "new\nline", "\udcff\udcfe", "ro", "-x", "ä=b", "*"])
def test_names_of_directories(place: Path, name: str) -> None:
    """Any name a directory can have can be shared."""
    (place / name).mkdir()
    assert resolve_share(name) == Share(f"{place}/{name}", f"{place}/{name}", False)
    assert resolve_share(f"{name}:rw") == Share(f"{place}/{name}", f"{place}/{name}", True)


def test_the_home_is_expanded(place: Path) -> None:
    """A tilde that no shell has expanded means the home; a name that begins with one can still be written."""
    (place / "home/docs").mkdir(parents=True)
    (place / "~").mkdir()
    assert resolve_share("~/docs").source == f"{place}/home/docs"
    assert resolve_share("~").source == f"{place}/home"
    assert resolve_share("./~").source == f"{place}/~"


def test_links_are_followed_once(place: Path) -> None:
    """What is shared is where the link leads now; it appears under the name that was said."""
    (place / "real/in").mkdir(parents=True)
    (place / "link").symlink_to("real")
    assert resolve_share("link") == Share(f"{place}/real", f"{place}/link", False)
    assert resolve_share("link/in") == Share(f"{place}/real/in", f"{place}/link/in", False)


@pytest.mark.parametrize("word", ["/", "//", "/.", "/usr/..", "rootlink", "/proc/self/root", "/:rw:at=/host"])
def test_the_root_cannot_be_shared(place: Path, word: str) -> None:
    """The whole root is refused whatever it is called and wherever it should appear."""
    (place / "rootlink").symlink_to("/")
    with pytest.raises(ShareError, match="whole root directory"):
        resolve_share(word)


@pytest.mark.parametrize(
    "word", ["/proc", "/proc/self", "/sys:at=/x", "/dev:at=/x", "/dev/shm:rw:at=/x", "processes"]
)
def test_views_of_the_kernel_cannot_be_shared(place: Path, word: str) -> None:
    """The host's processes and devices are no files of the user's, also behind a link."""
    (place / "processes").symlink_to("/proc")
    with pytest.raises(ShareError, match="is the host's kernel"):
        resolve_share(word)


def test_a_file_is_no_share(place: Path) -> None:
    """A file is refused with the option that takes files, devices and sockets likewise."""
    (place / "file").write_text("")
    with pytest.raises(ShareError, match="is not a directory") as caught:
        resolve_share("file")
    assert "--include" in str(caught.value.hint)
    os.mkfifo(place / "fifo")
    with pytest.raises(ShareError, match="is not a directory"):
        resolve_share("fifo")


def test_what_does_not_exist(place: Path) -> None:
    """A directory that is not there is named with its full path and the reason."""
    (place / "dangling").symlink_to("nowhere")
    for word in ("missing", "dangling", "missing/deeper"):
        with pytest.raises(ShareError) as caught:
            resolve_share(word)
        assert caught.value.message == f"cannot share {place}/{word}: No such file or directory"
    (place / "file").write_text("")
    with pytest.raises(ShareError, match="Not a directory"):
        resolve_share("file/x")


def test_loops_of_links(place: Path) -> None:
    """Links that lead to each other are told as that."""
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    for resolve, word in ((resolve_share, "a"), (resolve_include, "/x=a")):
        with pytest.raises(ShareError, match="leads to itself by symbolic links"):
            resolve(word)


def test_names_that_are_too_long(place: Path) -> None:
    """A name no file system takes is a sentence."""
    with pytest.raises(ShareError, match="File name too long"):
        resolve_share("x" * 300)
    with pytest.raises(ShareError, match="File name too long"):
        resolve_include(f"/x={'x' * 300}")


def test_here(place: Path) -> None:
    """--here is the working directory, writable, at the same path."""
    assert share_here() == Share(str(place), str(place), True)


def test_here_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """--here in the root directory is refused as any share of it."""
    monkeypatch.chdir("/")
    with pytest.raises(ShareError, match="whole root directory"):
        share_here()


def test_the_working_directory_has_vanished(nowhere: None) -> None:
    """Without a working directory, --here and relative names are told why, absolute ones work."""
    with pytest.raises(ShareError, match="working directory does not exist"):
        share_here()
    for resolve, word in ((resolve_share, "dir"), (resolve_share, "."), (resolve_include, "/x=file")):
        with pytest.raises(ShareError, match="working directory does not exist"):
            resolve(word)
    assert resolve_share("/usr").source == "/usr"
    assert resolve_include("/x=/usr").source == os.path.realpath("/usr")


def test_includes(place: Path) -> None:
    """A file or directory is included by its real path, at a normal path of the guest."""
    (place / "file").write_text("")
    (place / "dir").mkdir()
    (place / "link").symlink_to("file")
    assert resolve_include("/etc//x=file") == Include(f"{place}/file", "/etc/x")
    assert resolve_include("/x=dir") == Include(f"{place}/dir", "/x")
    assert resolve_include("/x=link") == Include(f"{place}/file", "/x")
    assert resolve_include(f"/x={place}/a/../file") == Include(f"{place}/file", "/x")


@pytest.mark.parametrize(
    "word, part", [("/x=missing", "No such file"), ("/x=fifo", "neither a file"), ("/x=/", "root")]
)
def test_what_cannot_be_included(place: Path, word: str, part: str) -> None:
    """What is not there, is no file or directory, or is everything, is refused."""
    os.mkfifo(place / "fifo")
    with pytest.raises(ShareError, match=part):
        resolve_include(word)


@pytest.mark.parametrize("word", ["a\0b", "/x=a\0b"])
def test_nul_bytes(word: str) -> None:
    """A NUL byte, which can only come from the API, is a usage error."""
    for resolve in (resolve_share, resolve_include):
        with pytest.raises(UsageError):
            resolve(word)


def test_what_may_not_be_read(ordinary: OrdinaryUser) -> None:
    """What the caller may not read or enter is told at once, and not by a guest full of errors."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.errors import ShareError\n"
        "from cloche.host.paths import resolve_include, resolve_share\n"
        "os.chdir(os.environ['HOME']); os.mkdir('p'); os.mkdir('p/in'); os.chmod('p', 0o444)\n"
        "os.mkdir('q'); os.chmod('q', 0o111); open('f', 'w').close(); os.chmod('f', 0)\n"
        "for resolve, word in ((resolve_share, 'p'), (resolve_share, 'q'), (resolve_share, 'p/in'),\n"
        "                      (resolve_share, '/root/x'), (resolve_include, '/x=f'), (resolve_include, '/x=p')):\n"
        "    try: print(resolve(word))\n"
        "    except ShareError as error: print(error.message.replace(os.environ['HOME'], '~'))\n"
        "os.chmod('p', 0o755); os.rmdir('p/in'); os.rmdir('p'); os.rmdir('q'); os.unlink('f')\n"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(ordinary.project / "src")]
    assert ordinary.run(argv, check=True).stdout.decode().splitlines() == [
        "cannot share ~/p: you may not read it",
        "cannot share ~/q: you may not read it",
        "cannot share ~/p/in: Permission denied",
        "cannot share /root/x: Permission denied",
        "cannot include f: you may not read it",
        "cannot include p: you may not read it",
    ]


def test_refusals_are_one_sentence(place: Path) -> None:
    """No refusal ends with a full stop: the hint is a sentence of its own."""
    (place / "file").write_text("")
    for word in ("missing", "file", "/", "/proc", ""):
        with pytest.raises(ClocheError) as caught:
            resolve_share(word)
        assert not caught.value.message.endswith(".")


def test_how_large_a_disk_may_become_is_looked_up(place: Path) -> None:
    """A raw file may stay as large as it is, a qcow2 image may hold its whole disk, and what is none may not grow."""
    (place / "raw").write_bytes(bytes(4096))
    (place / "image").write_bytes(empty_qcow2(64 << 20))
    assert resolve_disk("a=raw,ro") == Disk("a", str(place / "raw"), "raw", False, 4096)
    most = (4 << 16) + (64 << 20) + (8 << 20) + (32 << 20)
    assert resolve_disk("a=image,format=qcow2") == Disk("a", str(place / "image"), "qcow2", True, most)
    assert resolve_disk("a=raw,format=qcow2").most_bytes == 4096
