"""What a run can be told (layer 1, pure): one table behind the command line, its help, and settings files.

An option's value is a word; ``convert`` reads it. Whoever adds an option to ``RUN_OPTIONS`` has added a key of settings
files as well (``model.settings``).
"""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable


class Option(Record):
    """One option.

    Attributes:
        names: ``-m``, ``--memory``: the last one gives the name under which the value is found.
        help: One sentence.
        metavar: The value's name in help texts; None for a switch.
        repeat: Whether it may be given several times (the value is then a tuple).
        convert: Turns the word into the value; raises UsageError.
        value: What a switch sets.
        dest: The name under which the value is found when it is not the long name's.
        optional: The name of a value that a switch may have; it stands behind ``=``.
    """

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    repeat: bool = False
    convert: Callable[[str], object] = str
    value: object = True
    dest: str = ""
    optional: str = ""

    @property
    def key(self) -> str:
        """The name under which ``Parsed`` holds the value."""
        return self.dest or self.names[-1].lstrip("-").replace("-", "_")


class Level:
    """Whose settings they are; what comes later is stronger."""

    BUILT_IN = "built-in"
    SYSTEM = "system"
    USER = "user"
    PROFILE = "profile"
    COMMAND = "command line"


#: What may stand behind a size, in KiB.
_UNITS_KIB = {"": 1024} | {
    letter + rest: kib
    for letter, kib in (("K", 1), ("M", 1024), ("G", 1024**2), ("T", 1024**3))
    for rest in ("", "B", "IB")
}


def parse_size_mib(word: str) -> int:
    """Read a memory size and return MiB: ``512``, ``512M`` and ``1G`` (also ``MiB``, ``GiB``); a bare number is MiB.

    Raises:
        UsageError: It is not a positive size.
    """
    number = word.rstrip("bBiIkKmMgGtT")
    kib = _UNITS_KIB.get(word[len(number) :].upper())
    if kib is None or not (number.isascii() and number.isdigit() and len(number) < 12) or int(number) == 0:
        raise UsageError(f"{word!r} is not a size", hint="Write for example 512M or 2G.")
    return max(1, int(number) * kib // 1024)


def parse_file(word: str) -> str:
    """Read the name of a file.

    Raises:
        UsageError: It is empty.
    """
    if not word:
        raise UsageError("no file was named", hint="Write its name right behind the =.")
    return word


def parse_count(word: str) -> int:
    """Read a positive whole number.

    Raises:
        UsageError: It is none.
    """
    if not (word.isascii() and word.isdigit() and len(word) < 10) or int(word) == 0:
        raise UsageError(f"{word!r} is not a positive whole number", hint="Write 1, 2, 3 and so on.")
    return int(word)


def parse_number(word: str) -> int:
    """Read a whole number, 0 among them.

    Raises:
        UsageError: It is none.
    """
    return 0 if word == "0" else parse_count(word)


def parse_duration_s(word: str) -> float:
    """Read a duration and return seconds: ``90``, ``1.5``, ``90s``, ``5m``, ``2h``.

    Raises:
        UsageError: It is no positive duration.
    """
    seconds = _read_seconds(word)
    if not 0 < seconds < 1e9:
        raise UsageError(f"{word!r} is not a duration", hint="Write for example 30s, 5m or 2h.")
    return seconds


def parse_time_s(word: str) -> float:
    """Read a duration that may be none at all: ``0``, ``1.5``, ``90s``, ``5m``.

    Raises:
        UsageError: It is no duration.
    """
    seconds = _read_seconds(word)
    if not 0 <= seconds < 1e6:
        raise UsageError(f"{word!r} is not a duration", hint="Write for example 0, 30s or 5m.")
    return seconds


def _read_seconds(word: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, factor = (word[:-1], units[word[-1]]) if word[-1:] in units else (word, 1.0)
    # float() would also take "nan", "1e3", "1_0" and blanks.
    plain = number.isascii() and number.replace(".", "", 1).isdigit()
    return float(number) * factor if plain and number.strip(".") else -1.0


MEMORY = Option(
    ("-m", "--memory"),
    "The most memory the machine may use (512M, 2G).",
    metavar="SIZE",
    convert=parse_size_mib,
)
CPUS = Option(("-c", "--cpus"), "The number of virtual CPUs.", metavar="N", convert=parse_count)
KERNEL = Option(("--kernel",), "Boot this kernel (see `cloche kernel list`).", metavar="NAME")
TTY = (
    Option(("--tty",), "Give the program a terminal.", dest="tty"),
    Option(("--no-tty",), "Give the program no terminal.", dest="tty", value=False),
)
ENV = Option(
    ("-e", "--env"),
    "Set an environment variable; a bare NAME passes on the host's.",
    metavar="NAME[=VALUE]",
    repeat=True,
)
WORKDIR = Option(("-w", "--workdir"), "Start in this directory of the guest.", metavar="PATH")
NAME = Option(("--name",), "Call the domain so, for `exec`, `logs`, `stop` and all others.", metavar="NAME")

RUN_OPTIONS = (
    Option(
        ("-d", "--detach"), "Start the program, print the domain's name and return; it goes on by itself."
    ),
    NAME,
    Option(("--interactive",), "Keep a detached program's input open, for `cloche attach`."),
    Option(
        ("--log-size",),
        "How much of a detached program's output is kept (16M).",
        metavar="SIZE",
        convert=parse_size_mib,
    ),
    Option(
        ("--share",),
        "Show a directory of the host in the guest; read-only unless :rw is said.",
        metavar="DIR[:ro|:rw][:at=PATH]",
        repeat=True,
    ),
    Option(("--share-later",), "Get ready for `cloche share add`, which a run without any share is not."),
    Option(("--here",), "Share the working directory, read-write, at the same path."),
    Option(
        ("-i", "--include"),
        "Copy a file or directory of the host into the guest before the start.",
        metavar="GUEST=HOST",
        repeat=True,
    ),
    Option(
        ("-I", "--include-list"),
        "Copy what the lines GUEST=HOST of a file name.",
        metavar="LIST",
        repeat=True,
    ),
    Option(
        ("--mount",),
        "Mount something in the guest: a directory of the host (host-bind), the file system in an image (host-image),"
        " a directory of the guest (guest-bind) or memory (ram).",
        metavar="KIND:SOURCE[,at=PATH][,OPTION...]",
        repeat=True,
    ),
    Option(
        ("--root",),
        "Give the guest another system tree than the host's: a directory, an image or a tar archive.",
        metavar="DIR|TAR|IMAGE[,format=raw|qcow2][,fs=TYPE][,part=N]",
    ),
    Option(
        ("--disk",),
        "Give the machine a disk kept in a file of the host, or an empty one that goes with it: /dev/disk/by-tag/TAG.",
        metavar="TAG=FILE[,format=raw|qcow2][,ro]|TAG=size:SIZE",
        repeat=True,
    ),
    Option(("--hwrng",), "Give the machine a device with random numbers of the host: /dev/hwrng."),
    Option(
        ("--net",),
        "Give the guest a network: the host's, as your programs have it (user), or a card whose frames go to a socket.",
        metavar="none|user[,mac=MAC]|socket:PATH[,mac=MAC]",
    ),
    Option(
        ("--vsock",),
        "Connect programs of the host with AF_VSOCK sockets of the guest, by a socket made here: CONNECT PORT.",
        metavar="PATH",
    ),
    Option(
        ("-u", "--user"), "Run as this user of the guest (root, nobody, you, or a number).", metavar="USER"
    ),
    Option(("--privileged",), "Run as root inside."),
    ENV,
    WORKDIR,
    MEMORY,
    CPUS,
    Option(
        ("--timeout",),
        "End the program after this time (30s, 5m); status 124.",
        metavar="TIME",
        convert=parse_duration_s,
    ),
    Option(("--pids",), "The most processes the program may have.", metavar="N", convert=parse_count),
    *TTY,
    Option(
        ("-p", "--profile"),
        "Keep every change in this profile, from one run to the next (see `cloche profile`).",
        metavar="NAME",
    ),
    Option(("-t", "--temporary"), "Leave nothing behind, whatever profiles there are."),
    Option(
        ("--pool",),
        "Take a machine that waits in the pool, if it fits (as runs do by themselves).",
        dest="pool",
    ),
    Option(
        ("--no-pool",),
        "Start a machine of its own, although one waits in the pool.",
        dest="pool",
        value=False,
    ),
    Option(("--cold",), "Boot from nothing, and make no template afterwards."),
    Option(("--driver",), "What isolates the program: qemu (the default) or bwrap (weaker).", metavar="NAME"),
    Option(
        ("--accel",), "Use kvm or tcg instead of what was found to work.", metavar="NAME", dest="accelerator"
    ),
    KERNEL,
    Option(
        ("--boot-timeout",),
        "Give up when the guest does not answer in time.",
        metavar="TIME",
        convert=parse_duration_s,
    ),
    Option(("--boot-log",), "Show the guest kernel's messages on stderr."),
    Option(("--agent-log",), "Show the agent's messages on stderr."),
    Option(("--shell-on-failure",), "Open a shell in the guest when the program fails."),
    Option(("--strace",), "Run the program under the guest's strace."),
    Option(
        ("--devices",),
        "Where the machine's devices are: process (each in its own, the default), bundled or vmm (both weaker).",
        metavar="process|bundled|vmm",
    ),
    Option(
        ("--insecure-no-jail",),
        "Leave out a part of the jails that this host cannot have: seccomp, namespaces, cgroups or ids.",
        metavar="PART",
        repeat=True,
    ),
    Option(("--dry-run",), "Print the plan and start nothing."),
    Option(
        ("--timings",),
        "Show where the time of the start went, on stderr; with FILE also for a browser's trace viewer.",
        convert=parse_file,
        optional="FILE",
    ),
)

#: Options that no file can give, and why.
NOT_IN_FILES = {"profile": "a file of settings cannot choose whose settings are read: `default_profile` does"}
