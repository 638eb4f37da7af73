"""A supervisor's own filter of system calls, in every kind of supervisor (tests/security has what it takes away)."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from support.errors import check_error

if TYPE_CHECKING:
    from support.runs import Runner

#: A sandbox that stands until the end of its input.
SANDBOX = """
import sys
sys.path.insert(0, sys.argv[1])
import cloche
with cloche.Sandbox() as sandbox:
    assert sandbox.run(["true"]).returncode == 0
    print(sandbox.ident, flush=True)
    sys.stdin.read()
"""


def test_every_supervisor_has_it(cloche: Runner) -> None:
    """A run in the foreground, a detached domain and a sandbox of the API are kept by processes with that filter."""
    foreground = cloche.popen(
        "run", "--name", "foreground", "--", "sh", "-c", "echo up; read end", stdin=subprocess.PIPE
    )
    sandbox = cloche.user.popen(
        ["/usr/bin/python3", "-I", "-c", SANDBOX, str(cloche.user.project / "src")], stdin=subprocess.PIPE
    )
    try:
        assert cloche("run", "-d", "--name", "detached", "--", "sleep", "600").returncode == 0
        names = ["foreground", "detached"]
        for process in (foreground, sandbox):
            assert process.stdout is not None
            said = process.stdout.readline().decode().strip()
            assert said, process.communicate()
            names.append(said)
        names.remove("up")
        for name in names:
            done = cloche("audit", "--json", name)
            found = json.loads(done.stdout)
            assert found["failures"] == []
            supervisor = found["processes"][0]
            assert (supervisor["role"], supervisor["pid"]) == ("supervisor", found["supervisor"])
            assert supervisor["seccomp"]["own_filters"] == 1
            assert supervisor["no_new_privs"]
    finally:
        cloche("stop", "detached")
        for process in (foreground, sandbox):
            process.communicate()


#: A command line that cannot find the compiled filter.
UNBUILT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import cloche.host.confine
cloche.host.confine.read_filter = lambda name: b""
from cloche.cli.main import main
sys.exit(main())
"""


def test_without_its_filter_nothing_starts(cloche: Runner) -> None:
    """The start fails with the reason and what gets around it; with that it runs, and says so."""

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        argv = ["/usr/bin/python3", "-IS", "-c", UNBUILT, str(cloche.user.project / "src"), "run", *words]
        return cloche.user.run([*argv, "--", "true"])

    check_error(run(), 125, "cannot limit the supervisor's system calls", "--insecure-no-jail=seccomp")
    check_error(run("--cold"), 125, "cannot limit the supervisor's system calls")
    assert run("--insecure-no-jail=seccomp").returncode == 0
