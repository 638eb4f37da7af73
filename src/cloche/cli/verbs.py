"""Every verb and option of the command line (layer 6): the table behind the parser, the help and the man page."""

from __future__ import annotations

from cloche.cli.parser import Verb, parse_signal
from cloche.model.options import (
    CPUS,
    ENV,
    KERNEL,
    MEMORY,
    NAME,
    RUN_OPTIONS,
    TTY,
    WORKDIR,
    Option,
    parse_count,
    parse_duration_s,
    parse_number,
    parse_size_mib,
    parse_time_s,
)

COMMON = (
    Option(("-h", "--help"), "Show help for the verb."),
    Option(("-v", "--verbose"), "Say what is being done, on stderr."),
)

_JSON = Option(("--json",), "Print JSON.")

_TEMPLATE_OPTIONS = (
    MEMORY,
    CPUS,
    KERNEL,
    Option(("--for-profiles",), "Make the one for runs with a profile: it has a drive for their disk."),
    Option(("--drives",), "Make the one for runs with N disks.", metavar="N", convert=parse_count),
    Option(("--background",), "Give way to everything else, and wait for nobody."),
)

_ORIGIN = Option(("--origin",), "Also say which file says it, and where.")

_CHECK = Option(("--check",), "Read all of them, and say which are damaged.")


def _listing(what: str, entry: str, *options: Option, operands: str = "") -> Verb:
    """Return the verb ``list`` of a group."""
    return Verb("list", f"List {what}.", entry, (*options, _JSON), operands=operands)


RUN = Verb(
    "run",
    "Run a program of this machine inside a machine of its own.",
    "start:main",
    RUN_OPTIONS,
    operands="CMD [ARG...]",
    program=True,
    settable=True,
)

VERBS = (
    RUN,
    Verb(
        "kernel",
        "Build, fetch and choose guest kernels.",
        verbs=(
            Verb("build", "Build a small kernel from the distribution's kernel source.", "kernel:build"),
            Verb("fetch", "Take the distribution's own kernel without installing it.", "kernel:fetch"),
            _listing("the kernels there are", "kernel:list_"),
            Verb("use", "Make a kernel the default.", "kernel:use", operands="NAME"),
            Verb("remove", "Delete a kernel.", "kernel:remove", operands="NAME"),
        ),
    ),
    Verb(
        "ps",
        "List your running domains.",
        "ps:main",
        (Option(("-a", "--all"), "Also those detached ones that have ended."), _JSON),
    ),
    Verb(
        "exec",
        "Run another program in a running domain, beside the one it was started for.",
        "join:exec_",
        (
            Option(
                ("-u", "--user"), "Run as this user of the guest instead of the program's.", metavar="USER"
            ),
            WORKDIR,
            ENV,
            *TTY,
        ),
        operands="DOMAIN [--] CMD [ARG...]",
        program=True,
    ),
    Verb(
        "shell",
        "Be root in a running domain: an administrator's shell.",
        "join:shell",
        (Option(("-u", "--user"), "Be this user instead of root.", metavar="USER"), *TTY),
        operands="[DOMAIN]",
    ),
    Verb(
        "attach",
        "Lend your terminal to the program of a detached domain; Ctrl-] leaves it alone again.",
        "join:attach",
        (Option(("--no-stdin",), "Give it no input, only see what it writes."),),
        operands="[DOMAIN]",
    ),
    Verb(
        "logs",
        "Show what the program of a detached domain has written.",
        "logs:main",
        (
            Option(("-f", "--follow"), "Go on until the domain ends."),
            Option(("-n", "--lines"), "Only the last so many lines.", metavar="N", convert=parse_count),
            Option(("--json",), "Print a JSON object for each piece, with its time and stream."),
        ),
        operands="DOMAIN",
    ),
    Verb(
        "wait",
        "Wait for the program of a domain and end with its status.",
        "life:wait",
        (
            Option(
                ("--timeout",),
                "Give up after this time (30s, 5m); the domain goes on.",
                metavar="TIME",
                convert=parse_duration_s,
            ),
        ),
        operands="DOMAIN",
    ),
    Verb(
        "stop",
        "End domains: SIGTERM to their programs, and later their machines.",
        "life:stop",
        (
            Option(
                ("-t", "--grace"),
                "How long programs have to end by themselves (10s).",
                metavar="TIME",
                convert=parse_time_s,
            ),
        ),
        operands="DOMAIN...",
    ),
    Verb(
        "kill",
        "Send a signal to the program of domains.",
        "life:kill",
        (Option(("-s", "--signal"), "This one instead of KILL.", metavar="SIGNAL", convert=parse_signal),),
        operands="DOMAIN...",
    ),
    Verb("pause", "Let domains stand still until they are resumed.", "life:pause", operands="DOMAIN..."),
    Verb("resume", "Let domains that were paused go on.", "life:resume", operands="DOMAIN..."),
    Verb(
        "cp",
        "Copy files and trees between host and guest; - is a tar archive on stdin or stdout.",
        "cp:main",
        operands="SOURCE TARGET",
    ),
    Verb("stats", "Say what running domains use.", "stats:stats", (_JSON,), operands="[DOMAIN...]"),
    Verb(
        "top",
        "Show what running domains use, again and again.",
        "stats:top",
        (
            Option(("--interval",), "How often (2s).", metavar="TIME", convert=parse_duration_s),
            Option(("-n", "--times"), "So many times, and no more.", metavar="N", convert=parse_count),
        ),
    ),
    Verb(
        "inspect",
        "Print state and plan of a domain as JSON; or what a guest sees of this host, and why.",
        "stats:inspect",
        (
            Option(("--stage",), "Print what a guest sees of the host's tree, what it does not, and why."),
            Option(("--root",), "With --stage: of the system that lies in this directory.", metavar="DIR"),
            _JSON,
        ),
        operands="[DOMAIN]",
    ),
    Verb("rename", "Call a running domain something else.", "life:rename", operands="DOMAIN NAME"),
    Verb(
        "rm",
        "Forget detached domains that have ended: their logs and how they ended.",
        "life:remove",
        (Option(("-a", "--all"), "All that have ended."),),
        operands="[DOMAIN...]",
    ),
    Verb(
        "share",
        "Share directories with a running domain, or take them away.",
        verbs=(
            Verb(
                "add",
                "Show directories of the host in a running guest; read-only unless :rw is said.",
                "share:add",
                operands="DOMAIN DIR[:ro|:rw][:at=PATH]...",
            ),
            Verb(
                "remove",
                "Take shared directories away again, by their place in the guest or on the host.",
                "share:remove",
                (
                    Option(
                        ("-f", "--force"),
                        "Take it away although a program uses it, or the guest does not answer.",
                    ),
                ),
                operands="DOMAIN DIR...",
            ),
            _listing("what is shared with a running domain", "share:list_", operands="[DOMAIN]"),
        ),
    ),
    Verb(
        "profile",
        "Make, list and change profiles: what keeps the changes of one run for the next.",
        verbs=(
            Verb(
                "new",
                "Make a profile; nothing is in it yet.",
                "profile:new",
                (
                    Option(
                        ("--size",),
                        "How large its disk may become (20G).",
                        metavar="SIZE",
                        convert=parse_size_mib,
                    ),
                ),
                operands="NAME",
            ),
            _listing("the profiles there are", "profile:list_"),
            Verb(
                "show",
                "Print size and state of a profile, and the settings of its runs.",
                "profile_settings:show",
                (_ORIGIN, _JSON),
                operands="NAME",
            ),
            Verb(
                "edit",
                "Edit the settings of a profile; what is wrong is not taken.",
                "profile_settings:edit",
                operands="NAME",
            ),
            Verb(
                "log",
                "List the starts of a profile that one can go back to.",
                "profile_starts:log",
                (_JSON,),
                operands="NAME",
            ),
            Verb(
                "revert",
                "Make a profile what it was before one of its last starts.",
                "profile_starts:revert",
                operands="NAME [START]",
            ),
            Verb(
                "export",
                "Write a profile, disk and settings, into one file.",
                "profile_archive:export",
                operands="NAME FILE|-",
            ),
            Verb(
                "import",
                "Make a profile of an exported one, or of a tar archive.",
                "profile_archive:import_",
                (
                    Option(
                        ("--most",),
                        "How large its disk may be, or is (20G).",
                        metavar="SIZE",
                        convert=parse_size_mib,
                    ),
                    Option(("--settings",), "Also take settings that open something of the host."),
                ),
                operands="FILE|- [NAME]",
            ),
            Verb("delete", "Delete profiles with all that is in them.", "profile:delete", operands="NAME..."),
            Verb("rename", "Call a profile something else.", "profile:rename", operands="NAME NEW-NAME"),
            Verb("clone", "Make a copy of a profile.", "profile:clone", operands="NAME NEW-NAME"),
            Verb(
                "diff",
                "List what a profile has added to the host's files, changed and deleted.",
                "profile_disk:diff",
                (_JSON,),
                operands="NAME [PATH]",
            ),
            Verb(
                "reset",
                "Take changes back: those of a file or directory, or all of them.",
                "profile_disk:reset",
                operands="NAME [PATH]",
            ),
            Verb(
                "resize",
                "Let the disk of a profile become larger.",
                "profile_disk:resize",
                operands="NAME SIZE",
            ),
            Verb("lock", "Keep a profile from being started and changed.", "profile:lock", operands="NAME"),
            Verb(
                "unlock",
                "Let it be used again; also where another host seemed to use it, and does not.",
                "profile:unlock",
                operands="NAME",
            ),
        ),
    ),
    Verb(
        "settings",
        "Show, check and edit what files of settings (cloche.toml) say to every run.",
        verbs=(
            Verb(
                "show",
                "Print what counts for a run without a profile.",
                "settings:show",
                (_ORIGIN, _JSON),
            ),
            Verb(
                "edit",
                "Edit your settings; what is wrong is not taken.",
                "settings:edit",
                (Option(("--system",), "Edit those of the system, /etc/cloche/cloche.toml."),),
            ),
            Verb(
                "check",
                "Say what is wrong with files of settings; status 125 when something is.",
                "settings:check",
                (_JSON,),
                operands="[FILE...]",
            ),
            Verb("path", "List the files that are read, the weakest first.", "settings:path", (_JSON,)),
            Verb(
                "template",
                "Print a file with every key, its meaning and an example, all commented out.",
                "settings:template",
                (
                    Option(
                        ("--level",),
                        "For whom: system, user (the default) or profile.",
                        metavar="system|user|profile",
                    ),
                ),
            ),
        ),
    ),
    Verb(
        "snapshot",
        "Save a running domain, and go on from what was saved.",
        verbs=(
            Verb(
                "save",
                "Save memory, devices and disks of a running domain; it goes on after a short stop.",
                "snapshot:save",
                (Option(("--stop",), "End the domain when it is saved."),),
                operands="DOMAIN NAME",
            ),
            Verb(
                "restore",
                "Start a detached domain that goes on from a snapshot, and print its name.",
                "snapshot:restore",
                (NAME,),
                operands="NAME",
            ),
            _listing("the snapshots there are", "snapshot:list_", _CHECK),
            Verb("delete", "Delete snapshots.", "snapshot:delete", operands="NAME..."),
        ),
    ),
    Verb(
        "fork",
        "Start detached domains that go on from what a running one is now.",
        "snapshot:fork",
        (
            Option(
                ("-n", "--count"),
                "How many; one, or as many as there are names.",
                metavar="N",
                convert=parse_count,
            ),
            Option(("--name",), "What one of them is to be called.", metavar="NAME", repeat=True),
        ),
        operands="DOMAIN",
    ),
    Verb(
        "disk",
        "Give a running domain a disk.",
        verbs=(
            Verb(
                "add",
                "Add disks kept in files of the host; what runs goes on after a short stop.",
                "add:disk",
                operands="DOMAIN TAG=FILE[,format=raw|qcow2][,ro]|TAG=size:SIZE...",
            ),
        ),
    ),
    Verb(
        "net",
        "Give a running domain a network.",
        verbs=(
            Verb(
                "add",
                "Add a network card, as `run --net` does; what runs goes on after a short stop.",
                "add:network",
                operands="DOMAIN user[,mac=MAC]|socket:PATH[,mac=MAC]",
            ),
        ),
    ),
    Verb(
        "template",
        "Make and list the saved machines from which runs go on instead of booting.",
        verbs=(
            Verb("build", "Boot a machine until it waits, and save it.", "template:build", _TEMPLATE_OPTIONS),
            _listing("the templates there are", "template:list_", _CHECK),
            Verb("remove", "Delete templates; without a name, all.", "template:remove", operands="[NAME...]"),
        ),
    ),
    Verb(
        "pool",
        "Keep machines that wait, warm, for the next `run`: it takes one and begins at once.",
        verbs=(
            Verb(
                "set",
                "Say how many machines of a kind are to wait, and make them; --keep 0 ends them.",
                "pool:set_",
                (
                    Option(("--keep",), "How many.", metavar="N", convert=parse_number),
                    MEMORY,
                    CPUS,
                    KERNEL,
                    Option(("--share-later",), "They can take shares (what a user's can, unless root's)."),
                    Option(
                        ("--no-share-later",),
                        "They have no server for shares: for runs without any.",
                        dest="share_later",
                        value=False,
                    ),
                ),
            ),
            Verb(
                "fill",
                "Make the machines that are missing, and end those out of date.",
                "pool:fill",
                (Option(("--background",), "Give way to everything else, and say nothing."),),
            ),
            _listing("the machines that wait, and what they use", "pool:list_"),
            Verb(
                "clear",
                "End the machines that wait.",
                "pool:clear",
                (Option(("--forget",), "Forget what was set, too, so that none are made any more."),),
            ),
            Verb("unit", "Print a systemd user unit that fills the pool at every login.", "pool:unit"),
        ),
    ),
    Verb(
        "audit",
        "Say what holds the processes of a running domain, as the kernel sees it.",
        "audit:main",
        (Option(("--files",), "List the open files and sockets of each process."), _JSON),
        operands="[DOMAIN]",
    ),
    Verb("doctor", "Say what works on this host, what does not, and what mends it.", "doctor:main", (_JSON,)),
    Verb(
        "drivers", "List the drivers, what they can do and how well they isolate.", "drivers:main", (_JSON,)
    ),
    Verb(
        "completion",
        "Print a completion script for a shell.",
        "reference:completion",
        operands="bash|zsh|fish",
    ),
    Verb("man", "Print the manual page (pipe it into `man -l -`).", "reference:man_page"),
    Verb("help", "Show help.", "reference:help_", operands="[VERB]"),
    Verb(
        "supervise",
        "Own a domain for a program that uses the Python API.",
        "supervise:main",
        operands="FD [FD]",
        hidden=True,
    ),
)
