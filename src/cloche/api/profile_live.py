"""What is done to a profile while a domain runs with it (layer 5b): a script in its own guest does it.

The guest is hostile: what it says of itself harms nobody but the profile. Its word that nothing is written can be a
lie, and what is copied meanwhile is then a disk such as this guest could have left in any case.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

from cloche.api.domain import Domain
from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.growing import ProfileGrow
from cloche.errors import ProfileError
from cloche.host.facts import collect_facts
from cloche.host.text import escape_untrusted
from cloche.plan.profile_scripts import APART, LIVE_DIFF, LIVE_FREEZE, LIVE_GROW, PYTHON
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloche.api.popen import Popen

#: Lines of a script are short words; more is none of ours.
_MOST_SAID = 64


def diff(name: str, ident: str, path: str) -> bytes:
    """Return what ``DIFF`` says below a path, of the profile that a domain runs with.

    Raises:
        DomainError: The domain has ended.
        ProfileError: The guest cannot tell.
    """
    done = Domain(ident).run(
        [*_words(LIVE_DIFF), path, collect_facts().user.home], user="root", capture_output=True
    )
    if done.returncode:
        raise _failed(name, done.stderr)
    return bytes(done.stdout)


def grow(name: str, ident: str, size_bytes: int) -> None:
    """Let the disk of a profile that a domain runs with become larger, and its file system with it.

    Raises:
        UsageError: It would become smaller, or no disk has that size.
        DomainError: The domain has ended.
        ProfileError: The host's file system refuses, or the guest.
    """
    with _script(ident, LIVE_GROW, str(size_bytes)) as script:
        if _line(script) != b"ready\n":
            raise _failed(name, script.communicate()[1])
        with Control(ident) as control:
            control.ask(ProfileGrow(size_bytes), Nothing)
        script.wait()
        if script.returncode:
            raise _failed(name, script.communicate()[1])


@contextmanager
def still(name: str, ident: str) -> Iterator[Callable[[], None]]:
    """Have a running domain write nothing to its profile's disk, whose file system is as if it had been unmounted.

    Yields:
        What is called when the disk has been read: it lets the guest go on, and raises a ProfileError when it was not
        still all the time.

    Raises:
        DomainError: The domain has ended.
        ProfileError: The guest cannot do it.
    """
    with _script(ident, LIVE_FREEZE, "/") as script:
        if _line(script) != b"frozen\n":
            raise _failed(name, script.communicate()[1])

        def go_on() -> None:
            said, errors = script.communicate()
            if script.returncode or said != b"thawed\n":
                raise _failed(name, errors)

        yield go_on


@contextmanager
def _script(ident: str, script: str, word: str) -> Iterator[Popen]:
    """Start a script in a domain; it ends with this block, or when its input does: also when this process is killed."""
    process = Domain(ident).popen(
        [*_words(script), word],
        user="root",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        yield process


def _words(script: str) -> tuple[str, ...]:
    return (*APART, *PYTHON, script)


def _line(script: Popen) -> bytes:
    assert script.stdout is not None
    return bytes(script.stdout.readline(_MOST_SAID))


def _failed(name: str, errors: bytes) -> ProfileError:
    said = tuple(escape_untrusted(line, 200) for line in errors.splitlines()[-4:])
    return ProfileError(
        f"the running guest could not do it with the disk of the profile {name}",
        detail=said,
        hint="End its domain first: of a profile that nobody uses it can be done in any case.",
    )
