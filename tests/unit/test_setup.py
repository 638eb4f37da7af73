"""The set-up's parts that decide: keys and stamps, versions, what is missing, where packages come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from setuplib import apt, cargo, main, packages, stamp, system, ui

if TYPE_CHECKING:
    from pathlib import Path


def test_stamp_with_the_same_key_is_fresh(tmp_path: Path) -> None:
    """A stage whose key is the one in its stamp has nothing to do; any other key or none means work."""
    mark = str(tmp_path / "stamps" / "x")
    assert not stamp.is_fresh(mark, "a")
    stamp.write_stamp(mark, "a")
    assert stamp.is_fresh(mark, "a")
    assert not stamp.is_fresh(mark, "a\n")
    stamp.write_stamp(mark, "b")
    assert not stamp.is_fresh(mark, "a")


def test_damaged_stamp_is_not_fresh(tmp_path: Path) -> None:
    """A stamp that is no text, as after a crash, is taken for none."""
    mark = tmp_path / "x"
    mark.write_bytes(b"\xff\x00")
    assert not stamp.is_fresh(str(mark), "a")


def test_replaced_file_is_whole_or_old(tmp_path: Path) -> None:
    """Replacing a file leaves readers of the old one undisturbed and nothing beside it."""
    target = tmp_path / "program"
    stamp.replace_file(str(target), b"old", 0o755)
    with target.open("rb") as reader:
        stamp.replace_file(str(target), b"new", 0o755)
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o755
    assert os.listdir(tmp_path) == ["program"]


def test_hash_follows_names_and_contents(tmp_path: Path) -> None:
    """The hash changes with a content, a name, a new file and a missing one, not with times or build products."""
    first = tmp_path / "src" / "a"
    first.parent.mkdir()
    first.write_text("1")
    inputs = [str(tmp_path / "src"), str(tmp_path / "lock")]
    seen = [stamp.hash_files(inputs)]
    os.utime(first, (1, 1))
    (tmp_path / "src" / "target").mkdir()
    (tmp_path / "src" / "target" / "product").write_text("x")
    assert stamp.hash_files(inputs) == seen[0]
    first.write_text("2")
    seen.append(stamp.hash_files(inputs))
    first.rename(tmp_path / "src" / "b")
    seen.append(stamp.hash_files(inputs))
    (tmp_path / "lock").write_text("")
    seen.append(stamp.hash_files(inputs))
    assert len(set(seen)) == len(seen)


def test_signature_tells_a_changed_file(tmp_path: Path) -> None:
    """The signature of a file outside the project changes when it is written, made or removed."""
    path = tmp_path / "status"
    missing = stamp.signature(str(path))
    path.write_text("1")
    written = stamp.signature(str(path))
    os.utime(path, ns=(0, 0))
    assert len({missing, written, stamp.signature(str(path))}) == 3


@pytest.mark.parametrize(
    "text, version",
    [
        ("1.85.0+dfsg3-1~deb12u3", (1, 85)),
        ("1.95.0 (59807616e 2026-04-14)\n", (1, 95)),
        ("(none)", (0, 0)),
        ("", (0, 0)),
        ("1", (0, 0)),
    ],
)
def test_compiler_versions(text: str, version: tuple[int, int]) -> None:
    """The two numbers that matter are read from what rustc and apt print; nonsense is older than everything."""
    assert cargo.parse_version(text) == version


def test_least_compiler_is_the_workspaces() -> None:
    """The oldest compiler accepted is the one that Cargo.toml names."""
    assert cargo.least_version() > (1, 70)


def test_cargo_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several compilers the first that is new enough is taken, the user's PATH first."""
    for name, version in (("old", "1.63.0"), ("broken", ""), ("new", "1.999.0"), ("later", "1.999.1")):
        (tmp_path / name).mkdir()
        for program in ("cargo", "rustc"):
            path = tmp_path / name / program
            path.write_text(f"#!/bin/sh\n[ -n '{version}' ] && echo '{program} {version} (x)'\n")
            path.chmod(0o755)
    path_value = ":".join(str(tmp_path / name) for name in ("old", "broken", "new", "later"))
    monkeypatch.setenv("PATH", f"{path_value}:/usr/bin:/bin")
    found = cargo.find()
    assert found == cargo.Cargo(str(tmp_path / "new" / "cargo"), (1, 999))
    assert found is not None
    assert cargo.environment(found)["PATH"].startswith(f"{tmp_path / 'new'}:")


@pytest.mark.parametrize(
    "version, major",
    [("1:10.0.2+ds-2+deb13u1~bpo12+1", 10), ("1:7.2+dfsg-7", 7), ("8.1", 8), ("", 0), ("x", 0)],
)
def test_major_version_of_a_package(version: str, major: int) -> None:
    """Epoch and revision do not matter for which QEMU it is."""
    assert system.major_version(version) == major


def test_recipes_name_known_groups_and_stages() -> None:
    """Whatever can be asked for consists of package groups and stages that exist."""
    for groups, stages in main.RECIPES.values():
        assert set(groups) <= packages.GROUPS.keys()
        names = {stage.split()[0] for together in stages for stage in together.split(" & ")}
        assert names <= {"python", "rust", "suites", "kernel"}


def test_package_lists_are_sorted() -> None:
    """Each group lists its packages in order and once, so that a merge does not double one."""
    for names in packages.GROUPS.values():
        assert list(names) == sorted(set(names))


def test_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A word that is no stage gets the usage and status 2, and nothing is set up."""
    assert main.main(["everything"]) == 2
    assert main.main(["system", "run", "nonsense"]) == 2
    assert "usage: tools/setup" in capsys.readouterr().err


def test_installed_versions_leave_out_what_is_not_there() -> None:
    """A package that is installed is found with its version, an invented one is not."""
    found = system.installed_versions(["base-files", "no-such-package-of-cloche"])
    assert list(found) == ["base-files"]


def test_failure_shows_the_end_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that fails is reported with its status, its last words and the log's place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ui.SetupError, match=r"(?s)status 7.*the reason.*setup-x\.log"):
        ui.run("x", "trying", ["sh", "-c", "echo the reason; exit 7"])
    assert capsys.readouterr().out == "x:       trying\n"
    assert "the reason" in (tmp_path / "cloche" / "log" / "setup-x.log").read_text()


def test_missing_program_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is not there gives an error that names it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ui.SetupError, match="cannot start /no/such/program: No such file"):
        ui.run("x", "trying", ["/no/such/program"])


def test_administrator_gets_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not install is told one command with every missing package in it."""
    monkeypatch.setattr(system, "find_root_prefix", lambda: None)
    monkeypatch.setattr(
        system,
        "find_missing",
        lambda *_, **__: packages.Missing(plain=("bc", "flex"), qemu=True, cargo=False, lints=False),
    )
    monkeypatch.setattr(stamp, "is_fresh", lambda *_: False)
    with pytest.raises(ui.SetupError) as caught:
        system.ensure(("run", "kernel"))
    commands = [
        line for line in str(caught.value).splitlines() if line.startswith("    sudo apt-get install")
    ]
    assert commands == ["    sudo apt-get install --no-install-recommends bc flex qemu-system-x86"]


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative XDG_CACHE_HOME counts as none, as its specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/somewhere")
    assert ui.cache_home() == "/somewhere/.cache/cloche"


def test_archives_are_read_from_the_systems_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The private source has the system's own mirrors of this release, its backports beside the release."""
    lines = (
        "bookworm http://mirror.example/debian/ main",
        "bookworm http://mirror.example/debian/ contrib",
        "bookworm-security http://other.example/security/ main",
        "nodistro http://third.example/ main",
    )
    monkeypatch.setattr(apt, "output_of", lambda *_, **__: "\n".join(lines))
    assert apt.archive_uris("bookworm") == {
        "bookworm": "http://mirror.example/debian/",
        "bookworm-security": "http://other.example/security/",
        "bookworm-backports": "http://mirror.example/debian/",
    }
    assert apt.archive_uris("") == {}
    assert apt.archive_uris("trixie") == {}
