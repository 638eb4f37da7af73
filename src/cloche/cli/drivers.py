"""``cloche drivers`` (layer 6): what the drivers can do here and how well they isolate."""

from __future__ import annotations

import sys

from cloche.cli.listing import print_json
from cloche.drivers.registry import DRIVER_NAMES, find_driver
from cloche.host.facts import collect_facts
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def main(parsed: Parsed) -> int:
    """List the drivers."""
    facts = collect_facts()
    rows = []
    for name in DRIVER_NAMES:
        driver = find_driver(name)
        status = driver.status(facts)
        rows.append(
            {
                "name": name,
                "usable": status.usable,
                "detail": status.detail,
                "hint": status.hint,
                "capabilities": driver.capabilities(facts)._asdict(),
            }
        )
    if parsed.get("json"):
        print_json(rows)
        return 0
    for row in rows:
        capabilities = row["capabilities"]
        assert isinstance(capabilities, dict)
        can = [
            key.replace("_", " ")
            for key, value in capabilities.items()
            if value is True and key != "needs_kernel"
        ]
        lacks = [
            key.replace("_", " ")
            for key, value in capabilities.items()
            if value is False and key != "needs_kernel"
        ]
        unusable = "" if row["usable"] else "cannot be used here: "
        sys.stdout.write(f"{row['name']:<8}{capabilities['isolation']:<14}{unusable}{row['detail']}\n")
        sys.stdout.write(f"        can:     {', '.join(can) or 'nothing of this'}\n")
        sys.stdout.write(f"        cannot:  {', '.join(lacks) or 'nothing is missing'}\n")
        if row["hint"]:
            sys.stdout.write(f"        hint:    {row['hint']}\n")
    return 0
