"""The caller's terminal (layer 6): raw mode and back, its size, signals, Ctrl-Z."""

from __future__ import annotations

import fcntl
import os
import struct

from cloche.lean import signal
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.reactor import Reactor

#: Signals that are the program's: SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM. Stop signals keep their meaning.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
_TIOCGWINSZ = 0x5413
_TCGETS = 0x5401
_TCSETS = 0x5402
#: The kernel's ``struct termios``: flags of input, output, control and local modes, line discipline, characters.
_MODE = struct.Struct("<IIIIB19s")


class Keeper(Protocol):
    """Who restores the terminal's mode when this process is killed."""

    def raw(self, terminal: int, saved: bytes, raw: bytes) -> None:
        """Take note, before it is done, that ``terminal`` becomes ``raw``, and was ``saved`` (both of TCGETS)."""
        raise NotImplementedError

    def restored(self) -> None:
        """Take note, after it was done, that there is nothing to restore any more."""
        raise NotImplementedError


def choose_terminal(asked: bool | None) -> tuple[bool, int]:
    """Return whether the program gets a terminal, and the descriptor on which its keys are typed.

    That is stdin, or the terminal that rules this process when stdout is that one and stdin is not: a pager at the end
    of a pipe takes its keys from there. ``asked`` is what the user said; then it is stdin in any case.
    """
    if asked is not None:
        return asked, 0
    if not os.isatty(1) or os.isatty(0):
        return os.isatty(1), 0
    try:
        os.tcgetpgrp(1)
        return True, os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False, 0  # the terminal is another session's: nothing that is typed there is ours


class Terminal:
    """What the run does with the terminal. Every change is undone by ``restore``, which may be called at any time.

    Attributes:
        wanted: Whether the program gets a terminal.
        keys: The descriptor on which its keys are typed.
        taken: Whether its mode is the program's to decide.
    """

    def __init__(self, wanted: bool, keys: int = 0, keeper: Keeper | None = None) -> None:
        """Remember what to do; ``keeper`` restores the mode when this process is killed."""
        self.wanted = wanted
        self.keys = keys
        self.taken = False
        self._keeper = keeper
        self._fd = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)
        self._saved: bytes | None = None

    @property
    def beside(self) -> bool:
        """Whether the program's stdin is not its terminal."""
        return self.wanted and self.keys != 0

    def size(self) -> tuple[int, int]:
        """Return rows and columns; 24 by 80 when there is no terminal to ask."""
        if self._fd >= 0:
            try:
                rows, cols, _, _ = struct.unpack("HHHH", fcntl.ioctl(self._fd, _TIOCGWINSZ, bytes(8)))
            except OSError:
                return 24, 80
            if rows and cols:
                return rows, cols
        return 24, 80

    def take(self, reactor: Reactor, taken: Callable[[], None]) -> None:
        """Make the terminal raw and call ``taken``: now or, for a job in the background, when it has come back.

        Touching the terminal from the background would stop the job. Nothing tells when a shell gives it back.
        """
        if not self.wanted:
            return
        self.taken = True
        from cloche.guest.fdio import BACKGROUND_S, in_foreground

        if in_foreground(self.keys):
            self.make_raw()
            taken()
        else:
            reactor.call_later(BACKGROUND_S, lambda: self.take(reactor, taken))

    def change_keeper(self, keeper: Keeper | None) -> None:
        """Take another keeper, before the terminal is made raw."""
        self._keeper = keeper

    def make_raw(self) -> None:
        """Let every key reach the guest; the guest's own terminal does echo, editing and Ctrl-C."""
        if not os.isatty(self.keys):
            return
        import termios

        now = fcntl.ioctl(self.keys, _TCGETS, bytes(_MODE.size))
        if self._saved is None:
            self._saved = now
        inputs, outputs, control, local, line, characters = _MODE.unpack(now)
        inputs &= ~(
            termios.BRKINT
            | termios.ICRNL
            | termios.INPCK
            | termios.ISTRIP
            | termios.IXON
            | termios.INLCR
            | termios.IGNCR
        )
        outputs &= ~termios.OPOST
        control = control & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        local &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        special = bytearray(characters)
        special[termios.VMIN], special[termios.VTIME] = 1, 0
        raw = _MODE.pack(inputs, outputs, control, local, line, bytes(special))
        if self._keeper is not None:
            self._keeper.raw(self.keys, self._saved, raw)
        _set(self.keys, raw)

    @property
    def is_raw(self) -> bool:
        """Whether the terminal is in raw mode now."""
        return self._saved is not None

    def restore(self) -> None:
        """Give the terminal back as it was."""
        if self._saved is None:
            return
        # A background process that touches the terminal is stopped by it: the mode must come back all the same.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            _set(self.keys, self._saved)
        except OSError:
            return  # the terminal is gone, and its mode with it
        finally:
            signal.signal(signal.SIGTTOU, before)
            self._saved = None
            if self._keeper is not None:
                self._keeper.restored()

    def watch_signals(
        self, reactor: Reactor, passed_on: Callable[[int], None], resized: Callable[[], None]
    ) -> None:
        """Hand signals of the caller to ``passed_on`` and changes of the terminal's size to ``resized``."""
        for signo in _PASSED_ON:
            # What the caller ignores (nohup) stays ignored.
            if signal.getsignal(signo) is not signal.SIG_IGN:
                reactor.add_signal(signo, passed_on)
        reactor.add_signal(signal.SIGWINCH, lambda signo: resized())

    def stop_self(self, signo: int) -> None:
        """Stop the whole job as the program was stopped, so that the shell has the terminal; returns after ``fg``."""
        self.restore()
        stop = signo if signo in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU) else signal.SIGSTOP
        os.kill(0 if stop != signal.SIGSTOP else os.getpid(), stop)


def _set(fd: int, mode: bytes) -> None:
    """Set the terminal's mode; a signal that comes in between is no reason to give up.

    At once: waiting for the output to drain would hang on a terminal that nobody reads.
    """
    while True:
        try:
            fcntl.ioctl(fd, _TCSETS, mode)
        except InterruptedError:
            continue
        return
