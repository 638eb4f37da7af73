"""Clones of one template are strangers to each other: nothing random is the same in two, and their clock is right.

What keeps them apart is the step that gives the guest's kernel fresh randomness; the twin leaves it out.
"""

from __future__ import annotations

import subprocess
import time
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from cloche.domain.prepare import prepare_plan
from cloche.domain.template import make_template
from cloche.host import templates
from cloche.host.facts import collect_facts
from cloche.model.guest import Entropy
from support.plans import request
from support.sequences import TELL, read_told, same_secret
from support.templates import run_plan, share_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from cloche.model.plan import LaunchPlan

#: Prints everything that must be different, one a line.
_STRANGERS = """
import ctypes, os, secrets, socket, subprocess
libc = ctypes.CDLL(None)
libc.getauxval.restype = ctypes.c_ulong
kernel = "/proc/sys/kernel/random/"
print("boot_id", open(kernel + "boot_id").read().strip())
print("AT_RANDOM", ctypes.string_at(libc.getauxval(25), 16).hex())
print("getrandom", os.urandom(16).hex())
print("uuid", open(kernel + "uuid").read().strip())
print("secrets", secrets.token_hex(16))
print("machine-id", open("/etc/machine-id").read().strip())
if os.path.exists("/usr/bin/ssh-keygen"):
    subprocess.run("ssh-keygen -q -t ed25519 -N '' -f /tmp/key".split(), check=True)
    print("ssh-keygen", open("/tmp/key.pub").read().split()[1])
"""
#: A kernel takes randomness from the CPU by itself, at 1, 2, 3, 4.5, 6.8, 10, 15 ... seconds of its life. The twin's
#: templates are so many seconds old, so that one of them is saved in one of the longer times in between.
_AGES_S = (8.0, 12.0, 11.0)
#: More than one program takes longer: the twin of the connections is saved in longer times still.
_OLD_S = (16.5, 25.0)
#: What a clock may be wrong by, in nanoseconds, in the best of so many machines (this one may be busy).
_CLOCK_NS, _MACHINES, _QUESTIONS = 10_000_000, 5, 40
_TELL_TIME = "import os, time\nwhile os.read(0, 1): os.write(1, b'%d\\n' % time.time_ns())"


@pytest.fixture(scope="module", autouse=True)
def _template() -> None:
    """Make the template of whoever runs the tests."""
    make_template(request(), collect_facts())


def _clone(*argv: bytes) -> LaunchPlan:
    plan = prepare_plan(request(*argv), collect_facts())
    assert plan.template is not None
    return plan


def _ask(plan: LaunchPlan) -> dict[str, str]:
    lines = run_plan(plan).decode().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def test_two_clones_have_nothing_random_in_common() -> None:
    """Every source of randomness, and everything made from one, is another in another clone."""
    first, second = (_ask(_clone(b"/usr/bin/python3", b"-c", _STRANGERS.encode())) for _ in range(2))
    assert first.keys() == second.keys() >= {"boot_id", "AT_RANDOM", "getrandom", "uuid", "secrets"}
    assert [name for name in first if first[name] == second[name]] == []


def test_without_fresh_randomness_clones_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without the step, two clones have the same boot_id, and the same randomness."""
    share_kernels(tmp_path, monkeypatch)
    seen = []
    for age in _AGES_S:
        monkeypatch.setattr("cloche.domain.template._SETTLE_S", age)
        name = make_template(request(), collect_facts())
        plan = _clone(b"/bin/cat", b"/proc/sys/kernel/random/boot_id", b"/proc/sys/kernel/random/uuid")
        assert any(isinstance(step, Entropy) for step in plan.setup)
        weak = plan._replace(setup=tuple(step for step in plan.setup if not isinstance(step, Entropy)))
        strong = run_plan(plan)
        seen = [run_plan(weak) for _ in range(3)]
        assert strong not in seen
        if len(set(seen)) < len(seen):
            return
        assert templates.remove(name)
    pytest.fail(f"clones differ without fresh randomness: {seen}")


def _tells_of_tcp() -> LaunchPlan:
    words = (b"/usr/bin/python3", b"-IS", b"-c", TELL.encode())
    plan = prepare_plan(request(*words, privileged=True), collect_facts())
    assert plan.template is not None
    return plan


def test_sequence_numbers_of_clones_differ() -> None:
    """The kernel's secret for them is drawn at its first socket, which no template has had: after the randomness."""
    one, other = (read_told(run_plan(_tells_of_tcp())) for _ in range(2))
    assert not same_secret(one, other)


def test_without_fresh_randomness_sequence_numbers_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without the step that draw gives clones the same secret, and with it one that none of them has."""
    share_kernels(tmp_path, monkeypatch)
    seen = []
    for age in _OLD_S:
        monkeypatch.setattr("cloche.domain.template._SETTLE_S", age)
        name = make_template(request(), collect_facts())
        plan = _tells_of_tcp()
        weak = plan._replace(setup=tuple(step for step in plan.setup if not isinstance(step, Entropy)))
        strong = read_told(run_plan(plan))
        seen = [read_told(run_plan(weak)) for _ in range(3)]
        assert not any(same_secret(strong, one) for one in seen)
        if any(same_secret(one, other) for one, other in combinations(seen, 2)):
            return
        assert templates.remove(name)
    pytest.fail(f"sequence numbers differ without fresh randomness: {seen}")


def test_the_clock_is_the_hosts(project: object) -> None:
    """The clock of a clone is right, and its uptime is that of a machine that was booted a moment ago."""
    errors = []
    for _ in range(_MACHINES):
        words = [f"{project}/bin/cloche", "--no-tty", "python3", "-c", _TELL_TIME]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        bounds = []
        for _ in range(_QUESTIONS):
            before = time.time_ns()
            process.stdin.write(b"?")
            said = int(process.stdout.readline())
            # It was right if it said a time in between.
            bounds.append((said - time.time_ns(), said - before))
        process.communicate()
        # The quickest answer says most.
        low, high = min(bounds, key=lambda bound: bound[1] - bound[0])
        errors.append(max(low, -high, 0))
        if errors[-1] < _CLOCK_NS:
            break
    assert min(errors) < _CLOCK_NS, errors
    up = float(run_plan(_clone(b"/bin/cat", b"/proc/uptime")).split()[0])
    assert 0 < up < time.clock_gettime(time.CLOCK_BOOTTIME)
