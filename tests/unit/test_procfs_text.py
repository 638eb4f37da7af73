"""What /proc says of a process whose names were chosen to be misread."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloche.host.procfs import Mount, _mounts, _status

#: Ends of lines to Python and not to the kernel among them.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.sampled_from("\n\\ :\v\f\x1c\x1d\x1e\x85\u2028"),
    max_size=20,
)


def escape(text: str, special: str) -> str:
    """Escape as the kernel does (``seq_escape``, ``mangle_path``): these characters as octal numbers, no others."""
    return "".join(f"\\{ord(char):03o}" if char in special else char for char in text)


@given(NAMES)
def test_a_process_says_nothing_by_its_name(name: str) -> None:
    """Whatever a process calls itself, every field of its status has the kernel's value, and there is none beside."""
    shown = escape(name, "\n\\")
    text = f"Name:\t{shown}\nUmask:\t0022\nSeccomp:\t2\nSeccomp_filters:\t3\n"
    status = _status(text)
    assert status.keys() == {"Name", "Umask", "Seccomp", "Seccomp_filters"}
    assert status["Name"] == shown.strip()
    assert (status["Seccomp"], status["Seccomp_filters"]) == ("2", "3")


@given(NAMES, NAMES)
def test_no_mount_hides_behind_its_path(path: str, source: str) -> None:
    """A mount is seen, as what it is, whatever characters its path and its source have."""
    where, what = escape(f"/{path}", " \t\n\\#"), escape(source or "none", " \t\n\\#")
    line = f"29 1 0:26 / {where} rw,nosuid shared:1 - tmpfs {what} rw,size=4k\n"
    assert list(_mounts(line * 2)) == [Mount(29, "0:26", where, "tmpfs", True)] * 2
