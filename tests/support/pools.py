"""Somebody's pool, which is a test's alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from support.users import OrdinaryUser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.runs import Runner

#: How `cloche -v` ends what it says about where a run is.
FROM_POOL = b"of the pool\n"


class Isolated(OrdinaryUser):
    """A user whose pool, and what is set for it, is this test's alone."""

    __slots__ = ()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a login gives this user, with the directories of the test."""
        base = str(self.home / "xdg")
        own = {
            "XDG_RUNTIME_DIR": f"{base}/run",
            "XDG_CONFIG_HOME": f"{base}/config",
            "XDG_STATE_HOME": f"{base}/state",
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(self.home.parent / ".cache")),
        }
        return super().environment({**own, **(more or {})})


class Pool:
    """Somebody's pool."""

    def __init__(self, runner: Runner) -> None:
        self.cloche = runner

    def set(self, keep: int, *options: str) -> None:
        """Have so many machines wait, and no others be made for a while."""
        done = self.cloche("pool", "set", "--keep", str(keep), *options)
        assert done.returncode == 0, done.stderr
        self.stop_refilling()

    def waiting(self) -> list[str]:
        """Return the identities of those that wait."""
        rows = json.loads(self.cloche("pool", "list", "--json").stdout)["machines"]
        return [row["domain"] for row in rows if row["state"] == "waiting"]

    def entries(self) -> list[str]:
        """Return the entries of the directory."""
        home = Path(self.cloche.user.environment()["XDG_RUNTIME_DIR"]) / "cloche-pool"
        return sorted(entry for entry in os.listdir(home) if "," in entry)

    def stop_refilling(self) -> None:
        """Keep those there are: after a failure nobody makes any in the background for a while."""
        home = Path(self.cloche.user.environment()["XDG_RUNTIME_DIR"]) / "cloche-pool"
        assert self.cloche.user.run(["touch", str(home / "failed")]).returncode == 0

    def supervisor(self, ident: str) -> int:
        """Return the process id of a machine's supervisor."""
        rows = json.loads(self.cloche("ps", "--all", "--json").stdout)
        warden = next(row["warden"] for row in rows if row["domain"] == ident)
        status = Path(f"/proc/{warden}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))

    def close(self) -> None:
        """End all of it."""
        self.cloche("pool", "set", "--keep", "0")
        self.cloche("pool", "clear", "--forget")
