"""The small verbs on a host where little works: listings and findings, never a traceback."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.cli import doctor, drivers
from cloche.cli.main import main
from cloche.cli.pool import unit_word
from cloche.drivers.contract import Capabilities
from cloche.errors import UsageError
from support.plans import TOOLS, facts

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts

CLOCHE = Path(__file__).resolve().parents[2] / "bin/cloche"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which there is no kernel and nothing is remembered."""
    return {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def run(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    return subprocess.run([CLOCHE, *words], env=env, check=False, capture_output=True, text=True, timeout=120)


def test_drivers_as_json(bare: dict[str, str]) -> None:
    """Every driver is listed with what it can do, whether or not it can be used here."""
    done = run("drivers", "--json", env=bare)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["qemu", "bwrap"]
    for row in rows.values():
        assert set(row) == {"name", "usable", "detail", "hint", "capabilities"}
        assert set(row["capabilities"]) == set(Capabilities._fields)
    assert rows["bwrap"]["capabilities"]["isolation"] == "namespaces"


@pytest.mark.parametrize(
    "tools", [TOOLS, TOOLS._replace(qemu="", bwrap="", qemu_version=(0, 0))], ids=["all", "none"]
)
def test_drivers_in_words(
    tools: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every capability is said to be there or to be missing; a driver that cannot be used says so, with the remedy."""
    host: HostFacts = facts(tools=tools)
    monkeypatch.setattr(drivers, "collect_facts", lambda: host)
    assert main(["drivers"]) == 0
    text = capfd.readouterr().out
    for name in Capabilities._fields[2:]:
        assert text.count(name.replace("_", " ")) == 2
    assert text.count("cannot be used here") == text.count("hint:") == (0 if tools.qemu else 2)


def test_there_is_no_kernel_yet(bare: dict[str, str]) -> None:
    """Without a kernel of cloche's the listing is valid, and names the ways to one if there is no other."""
    done = run("kernel", "list", "--json", env=bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(row["kind"] == "host" for row in json.loads(done.stdout))
    done = run("kernel", "list", env=bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cloche kernel build" in done.stdout or " host " in done.stdout


@pytest.mark.parametrize("verb", ["use", "remove"])
def test_kernels_by_name(bare: dict[str, str], verb: str) -> None:
    """A verb about one kernel wants exactly one name, of a kernel that is there."""
    for words in ((), ("a", "b")):
        done = run("kernel", verb, *words, env=bare)
        assert done.returncode == 125
        assert f"`cloche kernel {verb}` needs one kernel's name" in done.stderr
    done = run("kernel", verb, "nope", env=bare)
    assert done.returncode == 125
    assert "nope" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_doctor_without_a_cache(bare: dict[str, str]) -> None:
    """Directories that cannot be made are findings like others, each with its remedy, and nothing is booted."""
    done = run("doctor", "--json", env={**bare, "XDG_CACHE_HOME": "/proc/none"})
    assert (done.returncode, done.stderr) == (125, "")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["cache"]["state"] == "bad"
    assert "XDG_CACHE_HOME" in findings["cache"]["remedy"]
    assert "emulation" not in findings
    assert all(finding["state"] in ("ok", "note", "bad") for finding in findings.values())


@pytest.mark.parametrize(
    "tools, state, part",
    [
        (TOOLS, "ok", "10.0"),
        (TOOLS._replace(qemu_version=(7, 2)), "note", "no file server in a template"),
        (TOOLS._replace(qemu_version=(7, 1)), "bad", "too old"),
        (TOOLS._replace(qemu="", qemu_version=(0, 0)), "bad", "not installed"),
    ],
)
def test_what_the_doctor_says_of_qemu(tools: Any, state: str, part: str) -> None:
    """The version of QEMU decides, and what lacks is named with the remedy."""
    finding = next(finding for finding in doctor._tools(facts(tools=tools)) if finding.name == "qemu")
    assert finding.state == state
    assert part in finding.detail
    assert bool(finding.remedy) is (state != "ok")


@pytest.mark.parametrize(
    "field, name", [("warden", "warden"), ("agent", "agent"), ("fs", "fs"), ("bwrap", "bwrap")]
)
def test_what_the_doctor_says_of_missing_programs(field: str, name: str) -> None:
    """A program that is missing is a finding with the command that brings it; only bubblewrap can be done without."""
    missing: dict[str, Any] = {field: ""}
    findings = doctor._tools(facts(tools=TOOLS._replace(**missing)))
    finding = next(finding for finding in findings if finding.name == name)
    assert finding.state == ("note" if name == "bwrap" else "bad")
    assert finding.remedy
    assert all(other.state == "ok" for other in findings if other.name != name)


def test_the_unit_of_the_pool_has_its_path_in_one_word() -> None:
    """Whatever the path of cloche holds; a line's end it cannot hold."""
    assert unit_word("/usr/bin/cloche") == '"/usr/bin/cloche"'
    assert unit_word('/a b/100%/"c"\\d') == '"/a b/100%%/\\"c\\"\\\\d"'
    with pytest.raises(UsageError):
        unit_word("/a\nExecStart=/bin/sh")
