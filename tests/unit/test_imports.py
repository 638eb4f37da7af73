"""The layers of src/cloche (DESIGN, section 5), read from the imports.

Imports below ``if TYPE_CHECKING:`` count as well: a type that only a higher layer knows is in the wrong place.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Check = Callable[[Sequence["Module"]], list[str]]

SRC = Path(__file__).resolve().parents[2] / "src"

#: Who stands on which layer. What is on one layer does not import its neighbours, only what is below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("lean", "record"),
    ("errors", "log"),
    ("model",),
    ("plan", "policy", "profile"),
    ("host",),
    ("guest", "image", "kernel"),
    ("devices", "display", "drivers", "network", "rpc"),
    ("domain",),
    ("api",),
    ("testing",),
    ("cli",),
)
#: Modules that together are one part, though they are no package: the public API.
API_MODULES = frozenset({"__init__", "aio", "api"})
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}

#: Parts that only compute: text and model in, model out.
PURE_PARTS = frozenset({"model", "plan", "policy", "profile"})
#: What touches a disk, a clock, the environment, a process or another machine. ``posixpath`` computes with names only.
IMPURE_MODULES = frozenset(
    """
    asyncio ctypes datetime fcntl getpass glob grp io locale mmap multiprocessing os pathlib
    platform pwd random resource secrets select selectors shutil signal socket subprocess sys syslog
    tempfile termios threading time tty urllib uuid
    """.split()  # noqa: SIM905 - a list of words reads better without their quotes
)
IMPURE_BUILTINS = frozenset({"input", "open", "print"})

#: The doors through which programs are started: the host's tools, a domain's warden, the kernel's compilers, and the
#: supervisor of a domain that the API has started (DESIGN, section 3, step 3).
DOORS = ("cloche.host.process", "cloche.host.warden", "cloche.kernel", "cloche.domain.remote")
STARTING_CALLS = frozenset(
    {f"os.{name}" for name in ("popen", "posix_spawn", "posix_spawnp", "spawnv", "spawnve", "system")}
    | {f"asyncio.create_subprocess_{name}" for name in ("exec", "shell")}
    | {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output", "getoutput")}
)


class Module(NamedTuple):
    """A module's name and its parsed source."""

    name: str
    tree: ast.Module
    is_package: bool = False


class Import(NamedTuple):
    """One name that a module imports, with its line."""

    name: str
    line: int


@cache
def load_all() -> tuple[Module, ...]:
    """Return every module below src/cloche."""
    found = []
    for path in sorted(SRC.glob("cloche/**/*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, ast.parse(path.read_text(), path), is_package))
    return tuple(found)


def part_of(name: str) -> str:
    """Return the part of the table that a module belongs to (``cloche.host.process`` to ``host``)."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] in API_MODULES or parts[1].startswith("_"):
        return "api"
    return parts[1]


def imports_of(module: Module, known: frozenset[str]) -> list[Import]:
    """Return what a module imports, relative names resolved; of cloche's own names always the module's."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name.split(".")
                package = package[: len(package) - node.level + module.is_package]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full == "cloche.__version__":
                    continue  # a constant, not the API
                found.append(Import(full if full in known else base, node.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append(Import(name.value, node.lineno))
    return found


def layer_faults(modules: Sequence[Module]) -> list[str]:
    """Return every import that goes up or sideways, and every part that the table does not know."""
    known = frozenset(module.name for module in modules)
    faults = []
    for module in modules:
        part = part_of(module.name)
        if part not in LEVEL:
            faults.append(f"{module.name}: no layer is named {part}")
            continue
        for name, line in imports_of(module, known):
            if name.split(".")[0] != "cloche" or part_of(name) == part:
                continue
            if LEVEL.get(part_of(name), len(LAYERS)) >= LEVEL[part]:
                faults.append(f"{module.name}:{line}: {part} must not import {name}")
    return faults


def purity_faults(modules: Sequence[Module]) -> list[str]:
    """Return what touches the world in modules that only compute."""
    faults = []
    for module in modules:
        if part_of(module.name) not in PURE_PARTS:
            continue
        faults += [
            f"{module.name}:{line}: computes only, must not import {name}"
            for name, line in imports_of(module, frozenset())
            if name.split(".")[0] in IMPURE_MODULES
        ]
        faults += [
            f"{module.name}:{node.lineno}: computes only, must not call {node.func.id}"
            for node in calls_in(module)
            if isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS
        ]
    return faults


def bottom_faults(modules: Sequence[Module]) -> list[str]:
    """Return what the lowest layer imports that is not the standard library's, or of cloche."""
    return [
        f"{module.name}:{line}: layer 0 must not import {name}"
        for module in modules
        if part_of(module.name) in (*LAYERS[0], *LAYERS[1])
        for name, line in imports_of(module, frozenset())
        if name.split(".")[0] not in sys.stdlib_module_names and name not in ("cloche.lean", "cloche.record")
    ]


def third_party_faults(modules: Sequence[Module]) -> list[str]:
    """Return imports of what is neither ours nor in the standard library: running cloche needs no packages."""
    return [
        f"{module.name}:{line}: {name} is not in the standard library"
        for module in modules
        for name, line in imports_of(module, frozenset())
        if name.split(".")[0] not in {*sys.stdlib_module_names, "cloche"}
    ]


def terminal_faults(modules: Sequence[Module]) -> list[str]:
    """Return what prints, prompts or exits below the command line."""
    faults = []
    for module in modules:
        if part_of(module.name) == "cli":
            continue
        faults += [
            f"{module.name}:{node.lineno}: only cli calls {ast.unparse(node.func)}"
            for node in calls_in(module)
            if ast.unparse(node.func)
            in {"print", "input", "exit", "quit", "sys.exit", "breakpoint", "SystemExit"}
        ]
    return faults


def process_faults(modules: Sequence[Module]) -> list[str]:
    """Return what starts programs past the doors made for it.

    The API may import ``subprocess``: it raises its exceptions and knows its constants. It may not call it.
    """
    faults = []
    for module in modules:
        if f"{module.name}.".startswith(tuple(f"{door}." for door in DOORS)):
            continue
        faults += [
            f"{module.name}:{line}: only the doors import {name}"
            for name, line in imports_of(module, frozenset())
            if name == "multiprocessing" or (name == "subprocess" and part_of(module.name) != "api")
        ]
        faults += [
            f"{module.name}:{node.lineno}: only the doors call {ast.unparse(node.func)}"
            for node in calls_in(module)
            if ast.unparse(node.func) in STARTING_CALLS
        ]
    return faults


def calls_in(module: Module) -> list[ast.Call]:
    """Return every call in a module."""
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]


CHECKS = (
    layer_faults,
    purity_faults,
    bottom_faults,
    third_party_faults,
    terminal_faults,
    process_faults,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_source_follows_the_table(check: Check) -> None:
    """No module of cloche breaks the rule."""
    assert check(load_all()) == []


MUTANTS = (
    (layer_faults, "cloche.model.x", "from cloche.host import process"),
    (layer_faults, "cloche.plan.x", "from cloche.profile import settings"),
    (layer_faults, "cloche.kernel.x", "import cloche.guest.mux"),
    (layer_faults, "cloche.host.x", "from cloche import domain"),
    (layer_faults, "cloche.host.x", "from .. import domain"),
    (layer_faults, "cloche.host.x", "from ..domain.run import start"),
    (layer_faults, "cloche.host.x", "def f():\n    from cloche.cli import main"),
    (layer_faults, "cloche.drivers.x", "if TYPE_CHECKING:\n    from cloche.domain import run"),
    (layer_faults, "cloche.domain.x", "import cloche"),
    (layer_faults, "cloche.domain.x", "from cloche.api import Sandbox"),
    (layer_faults, "cloche.api", "from cloche.cli.main import main"),
    (layer_faults, "cloche.log", "from cloche.errors import ClocheError"),
    (layer_faults, "cloche.host.x", "importlib.import_module('cloche.domain')"),
    (layer_faults, "cloche.unheard_of.x", ""),
    (purity_faults, "cloche.plan.x", "import os.path"),
    (purity_faults, "cloche.plan.x", "from time import monotonic"),
    (purity_faults, "cloche.model.x", "from os import environ"),
    (purity_faults, "cloche.policy.x", "text = open('/etc/passwd').read()"),
    (bottom_faults, "cloche.errors", "from cloche.model import mount"),
    (third_party_faults, "cloche.domain.x", "import msgspec"),
    (terminal_faults, "cloche.domain.x", "print('hello')"),
    (terminal_faults, "cloche.domain.x", "import sys\nsys.exit(1)"),
    (terminal_faults, "cloche.host.x", "raise SystemExit(1)"),
    (process_faults, "cloche.domain.x", "from subprocess import run"),
    (process_faults, "cloche.host.processes", "import subprocess"),
    (process_faults, "cloche.drivers.x", "import os\nos.system('true')"),
    (process_faults, "cloche.api", "import subprocess\nsubprocess.run(['true'])"),
    (process_faults, "cloche.aio", "await asyncio.create_subprocess_exec('true')"),
)


@pytest.mark.parametrize("check, name, source", MUTANTS)
def test_a_broken_rule_is_found(check: Check, name: str, source: str) -> None:
    """A module that breaks exactly this rule is reported by name."""
    others = [module for module in load_all() if module.name != name]
    faults = check([*others, Module(name, ast.parse(source))])
    assert len([fault for fault in faults if fault.startswith(name)]) == 1


ALLOWED = (
    (
        "cloche.domain.x",
        "from cloche.drivers import contract\nfrom cloche import log\nfrom . import endpoints",
    ),
    (
        "cloche.plan.x",
        "import posixpath\nfrom cloche.model import machine\nfrom cloche.errors import UsageError",
    ),
    ("cloche.host.process", "import subprocess"),
    ("cloche.kernel.build", "import subprocess"),
    ("cloche.api", "import subprocess\nraise subprocess.TimeoutExpired([], 1)"),
    ("cloche.cli.x", "import sys\nprint(1)\nsys.exit(1)\nfrom cloche import __version__"),
    ("cloche.host.x", "from cloche import __version__"),
)


@pytest.mark.parametrize("name, source", ALLOWED)
def test_what_the_rules_allow_is_not_found(name: str, source: str) -> None:
    """A module that keeps the rules is not reported."""
    others = [module for module in load_all() if module.name != name]
    modules = [*others, Module(name, ast.parse(source))]
    assert [fault for check in CHECKS for fault in check(modules) if fault.startswith(f"{name}:")] == []
