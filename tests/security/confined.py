"""Tries what the supervisor's policy names, with or without its filter; run as a program of its own.

Arguments: the sources' directory, ``confined`` or ``free``, then calls: ``NUMBER[:ARGUMENT...]``. Prints what each
ended with: an error's number, 0 for none.
"""

from __future__ import annotations

import ctypes
import os
import sys

sys.path.insert(0, sys.argv[1])

from cloche.host.confine import confine


def attempt(word: str) -> int:
    """Make one call, in a child: it may end, or leave, what makes it."""
    number, *arguments = (int(part, 0) for part in word.split(":"))
    call = ctypes.CDLL(None, use_errno=True).syscall
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        result = call(ctypes.c_long(number), *(ctypes.c_long(value) for value in arguments))
        os.write(writer, b"%d\n" % (ctypes.get_errno() if result == -1 else 0))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        # A call that makes a process has it answer, too.
        answers = pipe.read().split()
    os.waitpid(child, 0)
    return int(answers[0])


if sys.argv[2] == "confined":
    confine()
for word in sys.argv[3:]:
    sys.stdout.write(f"{attempt(word)}\n")
