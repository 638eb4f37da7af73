"""Rules about the text of the project that no linter holds."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 500

#: Paths of the machines the project is developed on. (`/root` and `/home/alice` exist in guests and in examples.)
DEVELOPER_PATHS = re.compile(
    r"/work/\w|/root/\.(cargo|rustup|pyenv|npm|nvm|go)\b|/home/(?!(user|alice|bob|ada)\d*\b)[a-z]\w*/|/Users/\w"
)
#: Where packages come from is the business of apt, pip and cargo, and of a mirror where there is one.
REGISTRY_HOSTS = re.compile(
    r"\b(deb|security|snapshot|ftp)\.debian\.org|\bpypi\.org|pythonhosted\.org|(index|static)\.crates\.io|npmjs\.org"
)


def tracked(*patterns: str) -> list[Path]:
    """Return the project's own text files that match one of the patterns."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


def lines_matching(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Return the places where a pattern is found."""
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match.group()}"
            for number, line in enumerate(text.splitlines(), 1)
            if (match := pattern.search(line))
        ]
    return found


def shell_calls(tree: ast.Module) -> list[int]:
    """Return the lines of calls that hand a text to a shell."""
    starters = {"Popen", "call", "check_call", "check_output", "run"}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        through_shell = called in {"os.system", "os.popen"} or called.endswith("create_subprocess_shell")
        if called.startswith("subprocess.") or called in starters:
            through_shell |= any(
                word.arg == "shell" and not (isinstance(word.value, ast.Constant) and not word.value.value)
                for word in node.keywords
            )
        if through_shell:
            found.append(node.lineno)
    return found


def undocumented(tree: ast.Module) -> list[str]:
    """Return the public names of a module that have no docstring, ``module`` for the module itself."""
    found = [] if ast.get_docstring(tree) else ["module"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_") or any(
                ast.unparse(name).endswith(("overload", "override", ".setter"))
                for name in node.decorator_list
            ):
                continue
            if not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return found


def parse(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), path)


def test_modules_are_short() -> None:
    """No module, Python or Rust, has more than 500 lines (those of a Rust module's own tests apart)."""
    lengths = {
        path: len(path.read_text().partition("#[cfg(test)]\nmod tests {")[0].splitlines())
        for path in tracked("*.py", "*.rs")
    }
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MOST_LINES} == {}


def test_public_names_are_documented() -> None:
    """Every public module, class, function and method of cloche has a docstring."""
    names = {
        str(path.relative_to(ROOT)): undocumented(parse(path)) for path in tracked("src/*.py", "tools/*.py")
    }
    assert {path: missing for path, missing in names.items() if missing} == {}


def test_tests_say_what_they_expect() -> None:
    """Every test has a docstring that begins with the expected behaviour, on one line."""
    missing = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in tracked("tests/*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not (ast.get_docstring(node) or "").partition("\n")[0].endswith(".")
    ]
    assert missing == []


def test_nothing_goes_through_a_shell() -> None:
    """No Python code has a shell take a text apart."""
    files = tracked("src/*.py", "tests/*.py", "tools/*.py", "bench/*.py", "fuzz/*.py")
    assert [f"{path.relative_to(ROOT)}:{line}" for path in files for line in shell_calls(parse(path))] == []


def test_nothing_sleeps() -> None:
    """No Python code waits for time to pass instead of an event."""
    sleeps = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked("src/*.py", "tests/*.py", "tools/*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sleep", "time.sleep", "asyncio.sleep"}
    ]
    assert sleeps == []


def test_no_paths_of_development_machines() -> None:
    """No file names a directory that exists only where cloche is developed."""
    others = [path for path in tracked() if path != Path(__file__).resolve()]
    assert lines_matching(DEVELOPER_PATHS, others) == []


def test_no_registry_hosts() -> None:
    """No file names a host that packages come from."""
    assert lines_matching(REGISTRY_HOSTS, tracked()) == []


def test_no_binaries() -> None:
    """Every tracked file is text, but for pictures in docs."""
    binaries = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix != ".png" and b"\0" in path.read_bytes()
    ]
    assert binaries == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run('ls | wc', shell=True)",
        "subprocess.Popen(line, shell=flag)",
        "run('ls', shell=1)",
        "os.system('ls')",
        "await asyncio.create_subprocess_shell('ls')",
    ],
)
def test_a_shell_is_found(source: str) -> None:
    """A call through a shell is reported with its line."""
    tree = ast.parse(f"async def f():\n    {source}")
    assert shell_calls(tree) == [2]


def test_a_list_of_words_is_no_shell() -> None:
    """A call with a list, and a function that happens to take `shell`, are not reported."""
    assert shell_calls(ast.parse("subprocess.run(['ls'], shell=False)\nUser(shell=True)")) == []


def test_missing_docstrings_are_found() -> None:
    """A public name without a docstring is reported, a private one is not."""
    source = "'''Doc.'''\ndef f(): pass\ndef _g(): pass\nclass C:\n    '''Doc.'''\n    def m(self): pass\n"
    assert undocumented(ast.parse(source)) == ["f", "C.m"]
    assert undocumented(ast.parse("x = 1")) == ["module"]


@pytest.mark.parametrize(
    "line",
    ["see /work/" + "main/x", "/root/" + ".cargo/bin", "open('/home/" + "jane/x')"],
)
def test_developer_paths_are_found(line: str) -> None:
    """A path of somebody's machine is recognised."""
    assert DEVELOPER_PATHS.search(line)


@pytest.mark.parametrize(
    "line", ["/root", "/root/.profile", "/home/alice2/project", "the /root/ of the guest", "~/.cargo/bin"]
)
def test_ordinary_paths_are_not_found(line: str) -> None:
    """A path that exists in every guest, and an example's, are allowed."""
    assert not DEVELOPER_PATHS.search(line)
