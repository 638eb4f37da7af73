"""Building a kernel: the real tar, patch, make, gcc and strip, on a source small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cloche.errors import KernelError, MissingToolError
from cloche.kernel import store
from cloche.kernel.build import TOOLS, Inputs, build_kernel, find_inputs, lost_options
from cloche.kernel.tools import exclusive_workspace, require_tools, run_tool

#: Does what the kernel's own makefile is asked for: takes the fragment as configuration, links an ELF file.
MAKEFILE = r"""
allnoconfig:
	grep -v UNKNOWN $(KCONFIG_ALLCONFIG) > .config
vmlinux:
	@echo '  CC      main.o'
	gcc -nostdlib -static -no-pie -Wl,--build-id=none -DUSER='"$(KBUILD_BUILD_USER)"' -o vmlinux main.c
	mkdir -p include/config && echo 6.12.0-test > include/config/kernel.release
	nm vmlinux > System.map
"""
MAIN = 'const char text[] = USER __FILE__ "one";\nvoid _start(void) { for (;;) ; }\n'
FIRST, SECOND = MAIN.splitlines()
PATCH = f"""\
--- a/main.c
+++ b/main.c
@@ -1,2 +1,2 @@
-{FIRST}
+{FIRST.replace("one", "two")}
 {SECOND}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cloche"


def make_inputs(
    directory: Path, *, fragment: str = "# why\nCONFIG_A=y\n", main: str = MAIN, patched: bool = False
) -> Inputs:
    """Make a source package, a fragment and perhaps a patch."""
    source = directory / "linux-source-6.12"
    source.mkdir(parents=True)
    (source / "Makefile").write_text(MAKEFILE)
    (source / "main.c").write_text(main)
    archive = directory / "linux-source-6.12.tar.xz"
    # The times of files must not matter, so a fixed one is not needed here; the archive's hash does.
    subprocess.run(
        ["tar", "-cJf", archive, "--mtime=@0", "--sort=name", "-C", directory, source.name], check=True
    )
    (directory / "kernel.config").write_text(fragment)
    patches: tuple[str, ...] = ()
    if patched:
        (directory / "0001-two.patch").write_text(PATCH)
        patches = (str(directory / "0001-two.patch"),)
    return Inputs(str(directory / "kernel.config"), patches, str(archive), ("gcc", "ld"))


def test_build_publishes_a_kernel_that_a_run_finds(tmp_path: Path, cache: Path) -> None:
    """What was built is complete, checked, stripped, and the one a run gets; nothing else is left."""
    kernel = build_kernel(inputs=make_inputs(tmp_path / "in"))
    assert (kernel.kind, kernel.version, kernel.machines) == ("built", "6.12.0-test", ("microvm",))
    assert store.find_kernel("built") == kernel
    store.verify_kernel(kernel)
    assert b".symtab" not in Path(kernel.image).read_bytes()
    assert "_start" in Path(kernel.directory, "System.map").read_text()
    assert sorted(path.name for path in cache.iterdir()) == [".build.lock", "kernels"]


def test_second_build_of_the_same_inputs_is_a_look_into_the_store(tmp_path: Path) -> None:
    """Nothing is compiled twice."""
    inputs = make_inputs(tmp_path / "in")
    first = build_kernel(inputs=inputs)
    before = Path(first.image).stat().st_mtime_ns
    stages: list[str] = []
    assert build_kernel(lambda stage, _: stages.append(stage), inputs=inputs) == first
    assert "compiling" not in stages
    assert Path(first.image).stat().st_mtime_ns == before


def test_same_inputs_give_the_same_bytes_wherever_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the cache's path nor the caller's environment is in the result."""
    inputs = make_inputs(tmp_path / "in")
    first = build_kernel(inputs=inputs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another place"))
    monkeypatch.setenv("CFLAGS", "-DUSER=me")
    monkeypatch.setenv("KBUILD_BUILD_USER", "me")
    second = build_kernel(inputs=inputs)
    assert (first.id, first.sha256) == (second.id, second.sha256)
    assert first.image != second.image


def test_each_input_changes_the_result_s_name(tmp_path: Path) -> None:
    """Fragment, source, patch and compiler are all in the hash."""
    inputs = make_inputs(tmp_path / "in")
    others = [
        make_inputs(tmp_path / "fragment", fragment="# other\nCONFIG_A=y\n"),
        make_inputs(tmp_path / "source", main=MAIN + "\n"),
        make_inputs(tmp_path / "patch", patched=True),
        inputs._replace(tools=("gcc 99", "ld")),
    ]
    assert len({inputs.digest(), *(other.digest() for other in others)}) == 5


def test_patches_are_applied(tmp_path: Path) -> None:
    """What is built is the patched source."""
    kernel = build_kernel(inputs=make_inputs(tmp_path / "in", patched=True))
    assert b"clochemain.ctwo" in Path(kernel.image).read_bytes()


def test_damaged_kernel_is_built_again(tmp_path: Path) -> None:
    """A cut image in the store is no reason to give up."""
    inputs = make_inputs(tmp_path / "in")
    kernel = build_kernel(inputs=inputs)
    Path(kernel.image).write_bytes(b"\x7fELF")
    assert build_kernel(inputs=inputs) == kernel
    store.verify_kernel(kernel)


def test_progress_only_grows_and_ends_at_one(tmp_path: Path) -> None:
    """A progress bar never goes back."""
    seen: list[tuple[str, float]] = []
    build_kernel(lambda stage, fraction: seen.append((stage, fraction)), inputs=make_inputs(tmp_path / "in"))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert seen[-1] == ("done", 1.0)
    assert {"unpacking the source", "configuring", "compiling"} <= {stage for stage, _ in seen}


def test_option_the_source_does_not_take_is_named(tmp_path: Path, cache: Path) -> None:
    """An option that Kconfig drops silently fails the build, and nothing is left of it."""
    with pytest.raises(KernelError, match="does not take 1 of the options: CONFIG_UNKNOWN=y"):
        build_kernel(inputs=make_inputs(tmp_path / "in", fragment="CONFIG_A=y\nCONFIG_UNKNOWN=y\n"))
    assert [path.name for path in cache.iterdir()] == [".build.lock"]


def test_compiler_error_is_shown(tmp_path: Path) -> None:
    """The hint holds what the compiler said last."""
    with pytest.raises(KernelError, match="make failed with status 2") as caught:
        build_kernel(inputs=make_inputs(tmp_path / "in", main="not C\n"))
    assert any("main.c:1" in line for line in caught.value.detail)


def test_leftovers_of_a_killed_build_are_removed_by_the_next(tmp_path: Path, cache: Path) -> None:
    """A gigabyte of sources does not stay because a build was killed."""
    (cache / ".build" / "linux").mkdir(parents=True)
    (cache / ".build" / "linux" / "main.c").write_text("stale")
    build_kernel(inputs=make_inputs(tmp_path / "in"))
    assert not (cache / ".build").exists()


def test_every_missing_tool_is_named_with_its_package() -> None:
    """One command installs all that is missing."""
    with pytest.raises(MissingToolError, match=r"/nowhere/a\.h, no-such-tool") as caught:
        require_tools({"tar": "tar", "no-such-tool": "b"}, {"/nowhere/a.h": "c-dev"})
    assert caught.value.hint == "sudo apt-get install b c-dev"


def test_project_s_own_inputs_are_there(tmp_path: Path) -> None:
    """The fragment, the patches and the source package are found, and the tools say who they are."""
    inputs = find_inputs(str(tmp_path))
    assert Path(inputs.fragment).name == "kernel.config"
    assert inputs.patches
    assert all("GNU" in tool or "gcc" in tool for tool in inputs.tools)
    assert set(TOOLS) >= {"gcc", "make", "patch"}


def test_lost_options_are_seen_in_both_directions() -> None:
    """Off must stay off, and on must stay on; a missing line is off."""
    config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=64\nCONFIG_ON=y\n"
    assert (
        lost_options("# a reason\nCONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_GONE is not set\n", config)
        == []
    )
    assert lost_options("CONFIG_N=32\nCONFIG_B=y\n# CONFIG_ON is not set\n", config) == [
        "CONFIG_N=32",
        "CONFIG_B=y",
        "# CONFIG_ON is not set",
    ]


def test_tool_that_does_not_exist_is_one_sentence() -> None:
    """No traceback for a program that went away."""
    with pytest.raises(KernelError, match="cannot start /nowhere/tool: No such file"):
        run_tool(["/nowhere/tool"])


def test_a_second_build_says_that_it_waits(cache: Path) -> None:
    """Whoever has to wait for another build says so before, and goes on when it is done."""
    said: list[str] = []
    with exclusive_workspace(str(cache), "build", lambda stage, fraction: said.append(stage)):
        assert not said
        script = (
            "import sys; from cloche.kernel.tools import exclusive_workspace\n"
            "say = lambda stage, fraction: print(stage, flush=True)\n"
            "with exclusive_workspace(sys.argv[1], 'build', say): print('mine', flush=True)\n"
        )
        second = subprocess.Popen([sys.executable, "-c", script, str(cache)], stdout=subprocess.PIPE)
        assert second.stdout is not None
        assert second.stdout.readline() == b"waiting for another build\n"
    with second:
        assert second.communicate(timeout=60)[0] == b"mine\n"
