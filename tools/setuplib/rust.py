"""The stage `rust`: the programs that cannot be Python, static, in ``build/bin``."""

from __future__ import annotations

import os

from setuplib import cargo, stamp
from setuplib.ui import ROOT, SetupError, run

TARGET = "x86_64-unknown-linux-gnu"
PROGRAMS = (
    "cloche-agent",
    "cloche-warden",
    "cloche-fs",
    "cloche-rng",
    "cloche-disk",
    "cloche-net",
    "cloche-vsock",
    "cloche-bundle",
)
#: Compiles the filters of system calls: NAME.filter, which the warden puts on before an exec, and NAME.inner.filter.
POLICY = "cloche-policy"
POLICIES = os.path.join(ROOT, "policies")
BIN = os.path.join(ROOT, "build", "bin")
#: Not `target/`: other flags than those of `cargo test` would have everything compiled again and again.
TARGET_DIR = os.path.join(ROOT, "build", "cargo")
INPUTS = (
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
    "crates",
    "policies",
    "protocol",
    "tools/setuplib/rust.py",
)


def ensure() -> None:
    """Compile the programs and put those that have changed in place.

    Raises:
        SetupError: There is no cargo, or it failed.
    """
    inputs = stamp.hash_files(os.path.join(ROOT, name) for name in INPUTS)
    key = f"{ROOT}\n{inputs}\n{cargo.signature()}"
    mark = os.path.join(stamp.STAMPS, "rust")
    if stamp.is_fresh(mark, key) and all(os.path.exists(path) for path in _products()):
        return
    found = cargo.find()
    if found is None:
        raise SetupError("there is no new enough cargo; 'tools/setup system rust' installs one")
    run(
        "rust",
        "compiling the agent, the warden and the device processes",
        [found.path, "build", "--locked", "--release", "--target", TARGET, "--workspace", "--bins"],
        env={**cargo.environment(found), "RUSTFLAGS": flags(), "CARGO_TARGET_DIR": TARGET_DIR},
    )
    for name in PROGRAMS:
        _put(os.path.join(TARGET_DIR, TARGET, "release", name), os.path.join(BIN, name))
    run(
        "rust",
        "compiling the filters of system calls",
        [os.path.join(TARGET_DIR, TARGET, "release", POLICY), POLICIES, BIN],
    )
    stamp.write_stamp(mark, key)


def _products() -> list[str]:
    names = [name.removesuffix(".toml") for name in os.listdir(POLICIES) if name.endswith(".toml")]
    filters = [os.path.join(BIN, f"{name}{kind}") for name in names for kind in (".filter", ".inner.filter")]
    return [os.path.join(BIN, name) for name in PROGRAMS] + filters


def flags() -> str:
    """Return the compiler's flags: static, and the same bytes wherever it is compiled."""
    home = os.environ.get("CARGO_HOME") or os.path.join(os.path.expanduser("~"), ".cargo")
    # The static libc once more at the end: GNU ld (Debian's rustc uses it, rustup's has another) reads each archive
    # once, in order, and libcap-ng comes after the C library it needs.
    flags = ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-Bstatic,-lc"]
    flags += [f"--remap-path-prefix={path}={name}" for path, name in ((ROOT, "cloche"), (home, "cargo"))]
    return " ".join(flags)


def _put(source: str, target: str) -> None:
    """Copy a program if it differs; what has its hash in a key (a template) stays valid if not."""
    with open(source, "rb") as file:
        content = file.read()
    try:
        with open(target, "rb") as file:
            if file.read() == content:
                return
    except FileNotFoundError:
        pass
    stamp.replace_file(target, content, 0o755)
