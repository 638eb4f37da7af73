"""``cloche.aio`` has what ``cloche`` has, with ``await``."""

from __future__ import annotations

import inspect

import pytest

from cloche import aio, api

#: What is named as in ``asyncio.subprocess``, or follows from ``run`` in one word.
OTHERWISE = {"popen", "call", "check_call", "check_output"}
#: What is there to be read, and has to be asked for where that may take time.
ASKED = {"state", "name", "made"}
#: Values, and names of ``subprocess`` that need no other form.
PLAIN = {
    "CalledProcessError",
    "CompletedProcess",
    "Machine",
    "Output",
    "Popen",
    "RUN_OPTIONS",
    "TimeoutExpired",
    "Waiting",
}
#: What works on files and takes a guest's time by itself.
LEFT_OUT = {"Profile"}


def public(kind: type) -> set[str]:
    """Return what users call or read of a class."""
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_name_has_its_twin() -> None:
    """What ``cloche.api`` exports is in ``cloche.aio``."""
    assert set(api.__all__) - PLAIN - LEFT_OUT == set(aio.__all__) - {"Process"}


@pytest.mark.parametrize("name", ["Sandbox", "Domain", "Snapshot"])
def test_every_method_has_its_twin(name: str) -> None:
    """With the same parameters; what is called is awaited."""
    ours, theirs = getattr(aio, name), getattr(api, name)
    assert public(theirs) - OTHERWISE - {"request"} <= public(ours)
    for method in public(theirs) & public(ours) - ASKED - {"ident", "run"}:
        one, other = getattr(ours, method), getattr(theirs, method)
        assert inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one), method
        assert tuple(inspect.signature(one).parameters) in (
            tuple(inspect.signature(other).parameters),
            ("args", "options"),
        ), method


@pytest.mark.parametrize("name", ["set_pool", "fill_pool", "list_pool", "clear_pool"])
def test_every_function_has_its_twin(name: str) -> None:
    """With the same parameters and defaults."""
    one, other = getattr(aio, name), getattr(api, name)
    assert inspect.iscoroutinefunction(one)
    assert inspect.signature(one).parameters == inspect.signature(other).parameters
