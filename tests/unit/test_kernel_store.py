"""Which kernel a run gets, and what is said when it gets none."""

from __future__ import annotations

import hashlib
import os
import pwd
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import KernelError, UsageError
from cloche.host.xdg import cache_dir
from cloche.kernel import store
from cloche.kernel.store import KernelInfo

ELF = b"\x7fELF" + bytes(2000)
KEYS = st.sampled_from(
    ["kind", "version", "machines", "image", "size", "sha256", "abilities", "module", "other"]
)
BZIMAGE = bytes(0x202) + b"HdrS" + bytes(2000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own, and no kernel of the host's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "host_kernel", lambda: None)
    return tmp_path / "cloche" / "kernels"


def publish(name: str, kind: str = "built", image: bytes = ELF, modules: tuple[str, ...] = ()) -> KernelInfo:
    """Put a kernel of made-up content into the store."""
    prepared = Path(cache_dir(), "prepared")
    (prepared / "modules").mkdir(parents=True)
    (prepared / "vmlinux").write_bytes(image)
    for module in modules:
        (prepared / "modules" / module).write_bytes(b"module")
    return store.publish_kernel(
        KernelInfo(
            id=name,
            kind=kind,
            version="6.12.1",
            machines=("microvm",) if kind == "built" else ("q35", "pc"),
            image=str(prepared / "vmlinux"),
            size_bytes=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
            modules=tuple(str(prepared / "modules" / module) for module in modules),
            directory=str(prepared),
            abilities=("lo_on_demand",) if kind == "built" else (),
        ),
        str(prepared),
    )


def set_age(kernel: KernelInfo, seconds: int) -> None:
    """Make a kernel look as if it had been published at another time."""
    os.utime(Path(kernel.directory, "info"), (10**9 - seconds, 10**9 - seconds))


def host() -> KernelInfo:
    """Return a kernel as the host's own would be."""
    image = Path(cache_dir(), "vmlinuz-host")
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(BZIMAGE)
    return KernelInfo("host-6.1", "host", "6.1", ("q35", "pc"), str(image), len(BZIMAGE), "", (), "")


def test_published_kernel_is_found_with_everything_it_was_published_with(cache: Path) -> None:
    """What comes out of the store is what went in, at its final place."""
    kernel = publish("6.12.1-a", "fetched", BZIMAGE, ("a.ko", "b with space.ko"))
    assert store.find_kernel() == kernel
    assert kernel.image == str(cache / "6.12.1-a" / "vmlinux")
    assert kernel.modules == tuple(
        str(cache / "6.12.1-a" / "modules" / name) for name in ("a.ko", "b with space.ko")
    )


def test_what_a_kernel_was_taught_is_remembered(cache: Path) -> None:
    """Abilities come back as they went in; a kernel from before there were any has none."""
    kernel = publish("b")
    assert store.find_kernel("b").abilities == ("lo_on_demand",)
    info = cache / kernel.id / "info"
    info.write_text(info.read_text().replace("abilities lo_on_demand\n", ""))
    assert store.find_kernel("b").abilities == ()


def test_without_any_kernel_the_hint_says_how_to_get_one() -> None:
    """No kernel is one sentence and a remedy."""
    with pytest.raises(KernelError, match="no guest kernel yet") as caught:
        store.find_kernel()
    assert "cloche kernel build" in (caught.value.hint or "")


def test_built_comes_before_host_and_host_before_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind is passed over only for a better one."""
    publish("f", "fetched", BZIMAGE)
    assert store.find_kernel().id == "f"
    monkeypatch.setattr(store, "host_kernel", host)
    assert store.find_kernel().id == "host-6.1"
    publish("b")
    assert store.find_kernel().id == "b"
    assert [kernel.id for kernel in store.list_kernels()][-1] == "host-6.1"


def test_newest_of_several_built_ones_is_taken() -> None:
    """A new build replaces an old one without being asked for."""
    set_age(publish("z-old"), 100)
    set_age(publish("a-new"), 10)
    assert store.find_kernel().id == "a-new"


def test_kernel_in_use_is_taken_whatever_its_kind_until_it_is_unset() -> None:
    """``use`` outweighs the order; using none restores it."""
    publish("b")
    publish("f", "fetched", BZIMAGE)
    store.use_kernel("f")
    assert store.find_kernel().id == "f"
    assert store.find_kernel("b").id == "b"
    store.use_kernel("b")
    assert store.find_kernel().id == "b"
    store.use_kernel(None)
    assert store.default_id() is None


def test_kernel_is_named_by_kind_by_beginning_and_by_directory() -> None:
    """All ways to ask for a kernel lead to it."""
    kernel = publish("6.12.1-cloche-0123")
    publish("6.1.0_1", "fetched", BZIMAGE)
    for wanted in ("built", "6.12", "6.12.1-cloche-0123", kernel.directory):
        assert store.find_kernel(wanted) == kernel


def test_ambiguous_beginning_is_refused_with_the_candidates() -> None:
    """The user is not made to guess what was meant."""
    publish("6.12.1-a")
    publish("6.12.1-b")
    with pytest.raises(KernelError, match=r"ambiguous: .*6\.12\.1-"):
        store.find_kernel("6.12")


@pytest.mark.parametrize("wanted", ["nothing", "default", ".", "..", "../kernels", ".hidden"])
def test_unknown_kernel_is_refused(wanted: str) -> None:
    """Only what is a kernel can be asked for."""
    publish("b")
    with pytest.raises(KernelError):
        store.find_kernel(wanted)


def test_host_kernel_cannot_be_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the store can change under the link."""
    monkeypatch.setattr(store, "host_kernel", host)
    publish("b")
    with pytest.raises(UsageError):
        store.use_kernel("host")


@pytest.mark.parametrize(
    "content, why",
    [(ELF[:-1], "bytes instead of"), (b"\0" * len(ELF), "no Linux kernel"), (None, "cannot be read")],
)
def test_damaged_image_is_named_with_the_reason(content: bytes | None, why: str) -> None:
    """A cut, overwritten or missing image never reaches the VMM."""
    image = Path(publish("b").image)
    if content is None:
        image.unlink()
    else:
        image.write_bytes(content)
    with pytest.raises(KernelError, match=f"kernel b is damaged: .*{why}") as caught:
        store.find_kernel()
    assert "cloche kernel remove b" in (caught.value.hint or "")


@pytest.mark.parametrize("info", [b"", b"cloche-kernel 2\n", b"cloche-kernel 1\nkind built\n", b"\xff\xfe"])
def test_unreadable_description_is_a_damaged_kernel(cache: Path, info: bytes) -> None:
    """A description of another form is no traceback, and the kernel can still be removed."""
    publish("b")
    (cache / "b" / "info").write_bytes(info)
    assert store.list_kernels() == []
    with pytest.raises(KernelError, match="kernel b is damaged"):
        store.find_kernel("b")
    assert store.remove_kernel("b") == "b"
    assert not (cache / "b").exists()


@given(
    st.lists(st.tuples(KEYS, st.text(max_size=12) | st.sampled_from(["1", "-1", "\0", "/", "vmlinux"]))),
    st.binary(max_size=8),
)
def test_any_description_is_a_kernel_or_a_damaged_one(pairs: list[tuple[str, str]], noise: bytes) -> None:
    """Whatever stands in the file, it is read, or refused in one sentence that names the kernel."""
    whole = {
        "kind": "built",
        "version": "6",
        "machines": "microvm",
        "image": "vmlinux",
        "size": "9",
        "sha256": "",
    }
    lines = [f"{key} {value}" for key, value in [*whole.items(), *pairs]]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "vmlinux").write_bytes(ELF)
        info = "\n".join(["cloche-kernel 1", *lines]).encode("utf-8", "surrogatepass") + noise
        Path(directory, "info").write_bytes(info)
        said = "it is damaged"
        try:
            store.check_image(store.read_info(directory))
        except KernelError as error:
            said = str(error)
    assert "is damaged" in said


def test_verify_sees_a_changed_byte_that_the_quick_check_does_not() -> None:
    """Size and first bytes are all a start looks at; ``verify`` reads everything."""
    kernel = publish("b")
    store.verify_kernel(kernel)
    image = Path(kernel.image)
    image.write_bytes(ELF[:-1] + b"x")
    store.find_kernel()
    with pytest.raises(KernelError, match="content has changed"):
        store.verify_kernel(kernel)


def test_removing_the_default_leaves_no_default(cache: Path) -> None:
    """No link is left that points at nothing, and nothing hidden either."""
    publish("6.12.1-a")
    store.use_kernel("6.12.1-a")
    assert store.remove_kernel("6.12") == "6.12.1-a"
    assert os.listdir(cache) == []


@pytest.mark.parametrize("wanted", ["b", "host", "../b", "/etc", "default"])
def test_only_a_stored_kernel_can_be_removed(wanted: str, tmp_path: Path) -> None:
    """Nothing outside the store is ever deleted."""
    (tmp_path / "cloche" / "b").mkdir(parents=True)
    with pytest.raises(KernelError):
        store.remove_kernel(wanted)
    assert (tmp_path / "cloche" / "b").is_dir()


def test_publishing_again_replaces_the_kernel(cache: Path) -> None:
    """A rebuilt kernel of the same id is the new one, whole, and the old one is gone."""
    publish("b")
    publish("b", image=ELF + b"more")
    assert store.find_kernel("b").size_bytes == len(ELF) + 4
    assert os.listdir(cache) == ["b"]


def test_half_made_directories_are_not_listed(cache: Path) -> None:
    """What another process is still writing, or was killed at, does not exist."""
    (cache / ".replaced-b.1").mkdir(parents=True)
    (cache / "half").mkdir()
    assert store.list_kernels() == []


def test_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG specification says so; a cache in whatever directory we are in would be one for each."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_dir() == "/home/user/.cache/cloche"


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_home_the_kernels_are_where_everything_else_is(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """HOME empty or relative: the home of passwd counts, for kernels as for the rest of the cache."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    assert store.kernels_home() == f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/cloche/kernels"
