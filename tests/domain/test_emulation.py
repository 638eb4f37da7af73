"""What emulation could get wrong that a machine would not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.runs import Runner

#: Many programs, run again and again while their pages are thrown away and filled with each other's code.
SCRIPT = """
bad=0
for round in 1 2 3 4 5; do
  for program in 'ls /' 'git --version' 'perl -e 1' 'python3 -S -c 1' 'gcc --version' 'sed p /dev/null' \\
                 'awk 1 /dev/null' 'sort /dev/null' 'find /opt' 'tar --version' 'grep x /dev/null' 'date'; do
    $program >/dev/null 2>&1
    [ $? -ge 128 ] && bad=$((bad + 1))
  done
  sync
  echo 3 > /proc/sys/vm/drop_caches
done
echo $bad
"""


def test_pages_filled_by_a_device_do_not_run_old_code(cloche: Runner) -> None:
    """Programs do not crash when the memory of others is reused for their code behind the emulator's back."""
    done = cloche.sh(SCRIPT, "--privileged", "-m", "256M", "--accel", "tcg")
    assert done.stdout == b"0\n", done.stderr


@pytest.mark.long
def test_without_the_clearing_they_crash(cloche: Runner) -> None:
    """The twin: on a kernel that does not clear pages when it takes them, programs run the code of others and crash."""
    source = cloche.user.project / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "from cloche.drivers.qemu import command\n"
        "build = command.build_kernel_command_line\n"
        "def without(*a, **k): return build(*a, **k).replace('init_on_alloc=1', '')\n"
        "command.build_kernel_command_line = without\n"
        "from cloche.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["--privileged", "-m", "256M", "--accel", "tcg", "sh", "-c", SCRIPT]
    done = cloche.user.run(["/usr/bin/python3", "-IS", "-c", program, *words])
    assert int(done.stdout) > 0
