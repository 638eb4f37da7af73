"""Start-up time is the product: what is imported on the way to starting a machine, and what must not be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
#: Each of them takes longer to import than the host needs to start the first process.
HEAVY = (
    "argparse",
    "ast",
    "asyncio",
    "concurrent.futures",
    "contextlib",
    "ctypes",
    "dataclasses",
    "datetime",
    "difflib",
    "enum",
    "gettext",
    "hashlib",
    "importlib.metadata",
    "importlib.resources",
    "inspect",
    "json",
    "locale",
    "logging",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shlex",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "tokenize",
    "tomllib",
    "traceback",
    "typing",
    "urllib",
    "urllib.parse",
    "uuid",
    "zipfile",
)
#: Everything `cloche run` imports until the warden has been told to start the VMM, and while it runs.
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from cloche.cli.main import main
from cloche.cli.parser import parse
from cloche.cli.verbs import COMMON, RUN, VERBS
import cloche.cli.run, cloche.cli.start, cloche.cli.terminal
import cloche.domain.domain, cloche.domain.launcher, cloche.domain.prepare, cloche.domain.request
import cloche.domain.restore, cloche.domain.monitor, cloche.host.templates
import cloche.guest.session, cloche.host.warden, cloche.host.rundir
import cloche.kernel.initramfs, cloche.kernel.store
import cloche.drivers.qemu, cloche.drivers.bwrap
import cloche.host.paths, cloche.host.memory
parsed = parse(["-m", "1G", "--here", "-e", "A=1", "true"], VERBS, RUN, COMMON)
assert not cloche.cli.start.xdg.has_settings()
cloche.domain.request.build_request(parsed.values, parsed.operands)
from cloche.host.facts import collect_facts
collect_facts()
print(*sorted(sys.modules), sep="\\n")
"""


def loaded(program: str, *, cwd: Path) -> set[str]:
    """Return the modules that are loaded at the end of a program, started as cloche is."""
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(SOURCE)]
    env = {**os.environ, "XDG_CONFIG_HOME": str(cwd), "XDG_CONFIG_DIRS": str(cwd)}
    return set(
        subprocess.run(argv, check=True, capture_output=True, cwd=cwd, text=True, env=env).stdout.split()
    )


@pytest.fixture(scope="module")
def of_run(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Provide the modules of a run."""
    return loaded(RUN, cwd=tmp_path_factory.mktemp("here"))


@pytest.mark.parametrize("module", HEAVY)
def test_nothing_heavy_on_the_way_to_a_machine(of_run: set[str], module: str) -> None:
    """A run loads no module that costs more than it is worth."""
    assert module not in of_run


def test_a_run_loads_what_it_needs_and_no_other_verb(of_run: set[str]) -> None:
    """The other verbs, the API and the supervisor for it are not loaded."""
    ours = {name for name in of_run if name.startswith("cloche.")}
    assert "cloche.guest.session" in ours
    for other in (
        "api",
        "aio",
        "cli.doctor",
        "cli.drivers",
        "cli.kernel",
        "cli.reference",
        "cli.settings",
        "cli.supervise",
        "domain.remote",
        "domain.settings",
        "domain.template",
        "model.settings",
        "profile",
    ):
        assert f"cloche.{other}" not in ours


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["kernel", "list"], ["drivers"], ["completion", "bash"]]
)
def test_small_questions_are_cheap(words: list[str], tmp_path: Path) -> None:
    """Verbs that only print start nothing of what a machine needs."""
    program = (
        "import io, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.cli.main import main\n"
        "stdout, sys.stdout = sys.stdout, io.StringIO()\n"
        f"main({words!r})\n"
        "print(*sorted(sys.modules), sep='\\n', file=stdout)\n"
    )
    modules = loaded(program, cwd=tmp_path)
    assert "cloche.cli.main" in modules
    assert not modules & {
        "cloche.guest.session",
        "cloche.domain.domain",
        "asyncio",
        "argparse",
        "subprocess",
        "inspect",
    }


def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    """`import cloche` alone loads no part of it: names are loaded when they are used."""
    program = "import sys; sys.path.insert(0, sys.argv[1])\nimport cloche\nprint(*sys.modules, sep='\\n')"
    assert {name for name in loaded(program, cwd=tmp_path) if name.startswith("cloche")} == {"cloche"}
