"""Finding a Rust compiler that is new enough."""

from __future__ import annotations

import os
from typing import NamedTuple

from setuplib.stamp import signature as file_signature
from setuplib.ui import ROOT, output_of


class Cargo(NamedTuple):
    """A usable cargo: the program and the version of the compiler beside it."""

    path: str
    version: tuple[int, int]


def candidates() -> list[str]:
    """Return the paths of every cargo there is, the user's choice first."""
    directories = [name for name in os.environ.get("PATH", "").split(":") if name.startswith("/")]
    directories += [os.path.join(os.path.expanduser("~"), ".cargo", "bin"), "/usr/bin"]
    paths = dict.fromkeys(os.path.join(name, "cargo") for name in directories)
    return [path for path in paths if os.access(path, os.X_OK)]


def find() -> Cargo | None:
    """Return the first cargo whose compiler is new enough."""
    for path in candidates():
        directory = os.path.dirname(path)
        version = parse_version(
            output_of([os.path.join(directory, "rustc"), "--version"]).removeprefix("rustc ")
        )
        if version >= least_version():
            return Cargo(path, version)
    return None


def has_lints(found: Cargo) -> bool:
    """Whether rustfmt and clippy are there for this cargo."""
    env = environment(found)
    return all(output_of([found.path, tool, "--version"], env=env) for tool in ("fmt", "clippy"))


def environment(found: Cargo) -> dict[str, str]:
    """Return the variables that make this cargo use the compiler beside it."""
    return {"PATH": f"{os.path.dirname(found.path)}:{os.environ.get('PATH', '/usr/bin:/bin')}"}


def least_version() -> tuple[int, int]:
    """Return the oldest compiler the workspace says it builds with (`rust-version` in Cargo.toml)."""
    with open(os.path.join(ROOT, "Cargo.toml"), encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition("=")
            if name.strip() == "rust-version":
                return parse_version(value.split('"')[1])
    return (0, 0)


def parse_version(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as `1.85.0+dfsg3-1`, (0, 0) when there are none."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return 0, 0


def signature() -> str:
    """Return what changes when another compiler may be found, without starting one."""
    home = os.environ.get("RUSTUP_HOME") or os.path.join(os.path.expanduser("~"), ".rustup")
    watched = [*candidates(), os.path.join(home, "settings.toml"), os.path.join(home, "toolchains")]
    return "\n".join(file_signature(path) for path in watched)
