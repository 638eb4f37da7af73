"""Reading a compiled filter of system calls (layer 3a): how many calls it lets through.

A filter is a classic BPF program over ``struct seccomp_data`` (seccomp(2)): the number of the call at offset 0, the
architecture at 4, arguments behind. What it does with arguments is not known beforehand, so both ways are followed: a
call counts as allowed when some arguments are.
"""

from __future__ import annotations

import struct

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSTRUCTION = struct.Struct("=HBBI")
_X86_64 = 0xC000_003E
_NUMBER, _ARCHITECTURE = 0, 4
_ALLOW = 0x7FFF_0000
#: System calls of x86-64 end well below this; numbers of x32 are above it.
_NUMBERS = 1024
#: linux/bpf_common.h: loads of a word, masking, jumps, the end.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _EQUAL, _ABOVE, _AT_LEAST, _BITS = 0x05, 0x15, 0x25, 0x35, 0x45

Program = tuple[tuple[int, int, int, int], ...]


def count_allowed(code: bytes) -> int | None:
    """Return how many system calls of x86-64 a filter allows; None for a program that is not one of ours."""
    if not code or len(code) % _INSTRUCTION.size:
        return None
    program: Program = tuple(_INSTRUCTION.iter_unpack(code))
    # Numbers that the program compares with nothing are all answered alike: one stands for them.
    named = {k for operation, _, _, k in program if operation == _EQUAL and k < _NUMBERS}
    other = next((number for number in range(_NUMBERS) if number not in named), _NUMBERS)
    try:
        allowed = sum(_allows(program, number) for number in named)
        rest = _allows(program, other)
    except (ValueError, IndexError):
        return None
    return allowed + (_NUMBERS - len(named)) * rest


def _allows(program: Program, number: int) -> bool:
    waiting: list[tuple[int, int | None]] = [(0, None)]
    seen = set(waiting)
    while waiting:
        at, accumulator = waiting.pop()
        if program[at][0] == _RETURN:
            if program[at][3] == _ALLOW:
                return True
            continue
        for state in _next(program[at], at, accumulator, number):
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return False


def _next(
    instruction: tuple[int, int, int, int], at: int, accumulator: int | None, number: int
) -> Iterator[tuple[int, int | None]]:
    """Yield where the program may go on, with what in its accumulator (None: anything)."""
    operation, then, otherwise, k = instruction
    if operation == _LOAD:
        yield at + 1, {_NUMBER: number, _ARCHITECTURE: _X86_64}.get(k)
    elif operation == _AND:
        yield at + 1, None if accumulator is None else accumulator & k
    elif operation == _JUMP:
        yield at + 1 + k, accumulator
    elif operation in (_EQUAL, _ABOVE, _AT_LEAST, _BITS):
        holds = None if accumulator is None else _compare(operation, accumulator, k)
        if holds is not False:
            yield at + 1 + then, accumulator
        if holds is not True:
            yield at + 1 + otherwise, accumulator
    else:
        raise ValueError(f"unknown instruction {operation:#x}")


def _compare(operation: int, accumulator: int, k: int) -> bool:
    if operation == _EQUAL:
        return accumulator == k
    if operation == _ABOVE:
        return accumulator > k
    if operation == _AT_LEAST:
        return accumulator >= k
    return accumulator & k != 0
