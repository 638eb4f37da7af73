"""Others' tests judge the guest's file systems: the writable layer, and a writable share.

What they may find is written in docs/compatibility.md and nowhere else: a failure that is not there fails the test, and
so does one that is there and was not found.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from support.users import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner

#: Python's tests of what has to do with files and processes. (Debian leaves those of sqlite3 out of its package.)
MODULES = (
    "test_os test_posix test_shutil test_tempfile test_mmap test_fcntl test_subprocess test_pathlib test_zipfile "
    "test_dbm"
)
PJDFSTEST = ROOT / "build" / "tools" / "bin" / "pjdfstest"
SETTINGS = """\
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.05
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"""


def known(suite: str, where: str) -> set[str]:
    """Return what docs/compatibility.md says of a suite's failures at a place, as patterns."""
    text = (ROOT / "docs" / "compatibility.md").read_text()
    rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {suite} |"))
    return {row[2].strip().strip("`") for row in rows if where in row[1]}


def of_python(xml: str) -> set[str]:
    """Return the names of the tests that failed, of what ``regrtest --junit-xml`` wrote."""
    cases = ET.fromstring(xml).iter("testcase")
    return {
        str(case.get("name"))
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }


def python_tests(directory: str) -> str:
    """Return the script that runs Python's tests in a directory and prints what they found."""
    return f"""
    cd {directory} && TMPDIR={directory} python3 -m test -u none --junit-xml found.xml {MODULES} >log 2>&1
    test -s found.xml || tail -50 log >&2
    cat found.xml
    """


@pytest.fixture(scope="module")
def on_the_host(cloche: Runner, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return which of Python's tests fail on this host, for the same user."""
    directory = cloche.user.home / "suite-on-the-host"
    cloche.user.run(["mkdir", str(directory)]).check_returncode()
    try:
        return of_python(
            cloche.user.run(["sh", "-c", python_tests(str(directory))], timeout=1800).stdout.decode()
        )
    finally:
        shutil.rmtree(directory)


@pytest.mark.long
def test_python_s_own_tests_on_the_layer(cloche: Runner, on_the_host: set[str]) -> None:
    """On the writable layer they find what they find on the host, and what is written down."""
    script = f"mkdir -p $HOME/suite && cd $HOME/suite && {python_tests('$PWD')}"
    done = cloche.sh(script, "-m", "2G", timeout=3000)
    assert of_python(done.stdout.decode()) - on_the_host == known("python", "layer"), done.stderr.decode()


@pytest.mark.long
def test_python_s_own_tests_on_a_share(cloche: Runner, folder: Path, on_the_host: set[str]) -> None:
    """On a writable share they find what they find on the host, and what is written down."""
    done = cloche.sh(python_tests(str(folder)), "-m", "2G", "--share", f"{folder}:rw", timeout=3000)
    assert of_python(done.stdout.decode()) - on_the_host == known("python", "share"), done.stderr.decode()


def posix_tests(directory: str) -> str:
    """Return the script that runs pjdfstest as root in a directory; what it failed is on lines of their own."""
    return f"""
    echo 'tests:x:990:990::/:/usr/sbin/nologin' >>/etc/passwd; echo 'tests:x:990:' >>/etc/group
    mkdir -p {directory} && cd {directory} && chmod 755 /srv/pjdfstest
    /srv/pjdfstest -c /srv/settings -p {directory}
    """


def failed(output: bytes) -> set[str]:
    """Return the names of failed tests; hold that the suite came to its end."""
    text = output.decode()
    assert re.search(r"^Summary: \d+ failed, \d+ skipped, [23]\d\d passed", text, re.MULTILINE), text[-2000:]
    return set(re.findall(r"^(\S+) +FAILED", text, re.MULTILINE))


def uncovered(names: set[str], patterns: set[str]) -> tuple[list[str], list[str]]:
    """Return the names that no pattern covers, and the patterns that cover no name."""
    return (
        sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)),
        sorted(pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)),
    )


@pytest.fixture
def suite(folder: Path, cloche: Runner) -> list[str]:
    """Return the options that bring pjdfstest into a guest."""
    settings = folder / "settings"
    settings.write_text(SETTINGS)
    program = folder / "pjdfstest"
    shutil.copy(PJDFSTEST, program)
    program.chmod(0o755)
    return ["--privileged", "-i", f"/srv/pjdfstest={program}", "-i", f"/srv/settings={settings}"]


@pytest.mark.long
def test_posix_on_the_layer(cloche: Runner, suite: list[str]) -> None:
    """Of what POSIX says of files, root on the layer misses what is written down."""
    done = cloche.sh(posix_tests("/var/tmp/posix"), *suite, timeout=1800)
    assert uncovered(failed(done.stdout), known("pjdfstest", "layer")) == ([], [])


@pytest.mark.long
def test_posix_on_a_share(cloche_as_caller: Runner, suite: list[str], folder: Path) -> None:
    """Of what POSIX says of files, root on a share of root's misses what is written down."""
    if os.geteuid() != 0:
        pytest.skip("other people's files can be made by root only")
    share = folder / "share"
    share.mkdir()
    os.chown(share, 0, 0)
    folder.chmod(0o755)
    done = cloche_as_caller.sh(posix_tests("/mnt"), *suite, "--share", f"{share}:rw:at=/mnt", timeout=1800)
    assert uncovered(failed(done.stdout), known("pjdfstest", "share")) == ([], [])


@pytest.mark.long
@pytest.mark.parametrize("where", ["layer", "share"])
def test_git_and_a_compiler(cloche: Runner, folder: Path, where: str) -> None:
    """A repository is made, cloned, checked and built, and the program made runs."""
    place, options = ("$HOME/work", []) if where == "layer" else (str(folder), ["--share", f"{folder}:rw"])
    script = f"""
    set -e; mkdir -p {place}; cd {place}
    export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    git init -q origin; cd origin; mkdir src
    for n in $(seq 200); do echo "int f$n(int x) {{ return x + $n; }}" > src/f$n.c; done
    printf 'int f7(int); int main(void) {{ return f7(35); }}\\n' > src/main.c
    printf 'program: $(patsubst %%.c,%%.o,$(wildcard src/*.c))\\n\\t$(CC) -o $@ $^\\n' > Makefile
    git add .; git commit -qm first; git gc -q
    cd ..; git clone -q origin copy; cd copy; git fsck --full --strict
    cp Makefile m; head -c 3 src/f1.c >/dev/null; make -s -j2 CFLAGS=-O0 program
    git status --porcelain | grep -v -e '[.]o$' -e program -e ' m$' && exit 3
    set +e; ./program; echo $?
    """
    done = cloche.sh(script, *options, timeout=1800)
    assert done.stdout.splitlines()[-1:] == [b"42"], done.stderr.decode()[-2000:]


#: Writes rows, each in a transaction of its own, and says of each when it is committed.
WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"pragma journal_mode={sys.argv[2]}"); db.execute("pragma synchronous=full")
db.execute("create table if not exists t(n integer primary key, text)")
n = db.execute("select coalesce(max(n), 0) from t").fetchone()[0]
while True:
    n += 1
    db.execute("begin"); db.execute("insert into t values(?, ?)", (n, "x" * (n % 3000))); db.execute("commit")
    print(n, flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_under_kill(cloche: Runner, folder: Path, journal: str) -> None:
    """Killed twenty times while it writes, a database on a share is whole and holds what was committed."""
    (folder / "writer.py").write_text(WRITER)
    database = folder / "data.db"
    script = f"""
    cd {folder}
    for round in $(seq 20); do
        mkfifo said; python3 writer.py data.db {journal} >said & exec 3<said; rm said
        for row in $(seq $((round * 7 % 23 + 1))); do read last <&3; done
        kill -9 $!; wait $!; while read more <&3; do last=$more; done
        exec 3<&-
        found=$(sqlite3 data.db "pragma integrity_check; select max(n) >= $last and count(*) = max(n) from t")
        test "$found" = "$(printf 'ok\\n1')" || {{ echo "round $round: $last, $found"; exit 1; }}
    done; echo whole $last
    """
    done = cloche.sh(script, "--share", f"{folder}:rw", timeout=1800)
    assert done.stdout.startswith(b"whole "), (done.stdout, done.stderr[-2000:])
    # The host sees the same database.
    host = cloche.user.run(["sqlite3", str(database), "pragma integrity_check; select count(*) from t"])
    assert host.stdout.split()[:1] == [b"ok"]
    assert int(host.stdout.split()[1]) >= int(done.stdout.split()[1])
