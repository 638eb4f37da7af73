"""The mutants of a machine of the pool: run as its owner with sources, what is weak, an age, and cloche's words.

Templates that it makes are so many seconds old.
``making``: no fresh randomness when the machine is restored. ``taking``: none when it is taken. ``both``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan
    from cloche.model.request import RunRequest


def main() -> int:
    """Run the command line with supervisors that leave the randomness out."""
    sys.path.insert(0, sys.argv[1])
    from cloche.cli.main import main as run
    from cloche.domain import member, taken, template
    from cloche.domain.prepare import prepare_plan
    from cloche.model.guest import Entropy
    from cloche.plan.pool import build_fresh_steps

    def weak_plan(request: RunRequest, facts: HostFacts) -> LaunchPlan:
        plan = prepare_plan(request, facts)
        return plan._replace(setup=tuple(step for step in plan.setup if not isinstance(step, Entropy)))

    def weak_steps() -> tuple[Step, ...]:
        return tuple(step for step in build_fresh_steps() if not isinstance(step, Entropy))

    if sys.argv[2] in ("making", "both"):
        member.prepare_plan = weak_plan  # type: ignore[assignment,attr-defined]
    if sys.argv[2] in ("taking", "both"):
        taken.build_fresh_steps = weak_steps  # type: ignore[attr-defined]
    template._SETTLE_S = float(sys.argv[3])
    return run(sys.argv[4:])


sys.exit(main())
