"""cloche whose network is less closed than it should be: opened.py SOURCES WORD..., cloche's own words after ``--``.

Each WORD is taken out of the arguments of the front and of passt.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

sys.path.insert(0, sys.argv[1])

from cloche.cli.main import main
from cloche.drivers.qemu import network as module

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board, DeviceParts
    from cloche.model.facts import HostFacts
    from cloche.model.request import Network as Asked

place = sys.argv.index("--")
taken = {os.fsencode(word) for word in sys.argv[2:place]}
closed = module.plan_network


def plan_network(board: Board, network: Asked, facts: HostFacts) -> DeviceParts:
    """Return the parts of a card, opened."""
    parts = closed(board, network, facts)
    processes = tuple(
        one._replace(argv=tuple(word for word in one.argv if word not in taken)) for one in parts.processes
    )
    return parts._replace(processes=processes)


module.plan_network = plan_network
sys.argv = ["cloche", *sys.argv[place + 1 :]]
sys.exit(main())
