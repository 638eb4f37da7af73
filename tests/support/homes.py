"""Homes with settings in them, and the command line as their owners have it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

CLOCHE = Path(__file__).resolve().parents[2] / "bin/cloche"


class Home:
    """Somebody's home, with settings in it, and the command line as they have it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.user = path / "config/cloche/cloche.toml"
        self.system = path / "system/cloche/cloche.toml"
        for file in (self.user, self.system):
            file.parent.mkdir(parents=True, mode=0o700)
        self.env = {
            "HOME": str(path),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "XDG_CONFIG_HOME": str(path / "config"),
            "XDG_CONFIG_DIRS": f"{path / 'system'}:relative",
            "XDG_RUNTIME_DIR": str(path / "none"),
        }

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        return subprocess.run(
            [CLOCHE, *words],
            env={**self.env, **env},
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def show(self) -> dict[str, tuple[object, str, int | None]]:
        """Return value, level and line of each setting that files give, the last member of a list."""
        rows = json.loads(self("settings", "show", "--json").stdout)
        return {row["key"]: (row["value"], row["level"], row["line"]) for row in rows if row["path"]}
