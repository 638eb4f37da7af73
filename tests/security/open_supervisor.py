"""The mutant: a supervisor that lets in another user only. Run as its owner: sources, user id, cloche's words."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace


def main() -> int:
    """Run the command line with a supervisor that takes the other one for its owner."""
    sys.path.insert(0, sys.argv[1])
    from cloche.cli.main import main as run
    from cloche.domain.control import server

    other = int(sys.argv[2])
    server.os = SimpleNamespace(**{**vars(os), "geteuid": lambda: other})  # type: ignore[assignment,attr-defined]
    return run(sys.argv[3:])


sys.exit(main())
