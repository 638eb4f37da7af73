"""What a program inherits from its caller besides words, streams and environment: ignored signals, and niceness."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.runs import Runner

#: The signals that are ignored, as the kernel says it.
SHOW = "grep SigIgn /proc/self/status"


def test_nohup_reaches_the_program(cloche: Runner) -> None:
    """Below nohup SIGHUP is ignored in the guest, and without it nothing is."""
    script = f"{SHOW}; kill -HUP $$; echo alive"
    done = cloche.user.run(["nohup", cloche.program, "sh", "-c", script])
    assert (done.returncode, done.stdout) == (0, b"SigIgn:\t0000000000000001\nalive\n")
    done = cloche.sh(script)
    assert (done.returncode, done.stdout) == (129, b"SigIgn:\t0000000000000000\n")


def test_a_job_in_a_scripts_background_ignores_the_keyboard(cloche: Runner) -> None:
    """A shell without job control lets its background jobs ignore SIGINT and SIGQUIT: in the guest, too."""
    script = f"{cloche.program} sh -c '{SHOW}; kill -INT $$; kill -QUIT $$; echo alive' & wait $!"
    done = cloche.user.run(["sh", "-c", script])
    assert (done.returncode, done.stdout) == (0, b"SigIgn:\t0000000000000006\nalive\n")


def test_what_cloche_itself_ignores_is_not_the_programs(cloche: Runner) -> None:
    """SIGPIPE, which Python ignores for itself, ends a program of the guest as it should."""
    done = cloche.user.run(["bash", "-c", f"{cloche.program} yes | head -n 1; echo ${{PIPESTATUS[0]}}"])
    assert done.stdout == b"y\n141\n"


def test_niceness_reaches_the_program(cloche: Runner) -> None:
    """A program below nice has its niceness in the guest."""
    here = os.nice(0)
    for more in (0, 3):
        done = cloche.user.run(["nice", "-n", str(more), cloche.program, "nice"])
        assert (done.returncode, done.stdout) == (0, b"%d\n" % min(here + more, 19))


def test_a_higher_priority_is_not_the_guests_to_have(cloche_as_caller: Runner) -> None:
    """A caller of a higher priority than the usual one gets a program of the usual one, in a faster machine."""
    done = cloche_as_caller.user.run(["nice", "-n", "-10", cloche_as_caller.program, "nice"])
    # Where pytest is not root's, nice says that it may not, and goes on.
    assert (done.returncode, done.stdout) == (0, b"%d\n" % max(os.nice(0) - 10 * (os.geteuid() == 0), 0))
