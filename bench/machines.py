"""The command lines of what cloche is compared with (pure)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What of cloche's QEMU command line describes the computer and not its devices.
_MACHINE_OPTIONS = ("-machine", "-accel", "-cpu", "-smp", "-m", "-global")
#: Kernel parameters that belong to cloche's own devices and first program.
_OWN_WORDS = ("console=", "earlyprintk=", "8250.", "rdinit=", "init=", "root=", "loglevel=")
#: The same promises as cloche's VMM gives: no setuid, no child processes, no change of its limits.
_SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
_BARE = ("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none")
#: What the raw machine mounts: the host's own tree, read-only, in the largest packets the transport has.
_ROOT_9P = "root=hostroot rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=512000,cache=loose ro"


class Computer(NamedTuple):
    """The computer cloche starts, without its devices: raw QEMU gets exactly the same.

    Attributes:
        qemu: The program.
        options: Machine, accelerator, CPU, memory.
        kernel: Its kernel's image.
        words: Its kernel's parameters.
        memory_mib: Its memory.
    """

    qemu: str
    options: tuple[str, ...]
    kernel: str
    words: tuple[str, ...]
    memory_mib: int


def computer_of(argv: Sequence[str], qemu: str, kernel: str, memory_mib: int) -> Computer:
    """Take the computer out of the command line of cloche's own VMM."""
    options: list[str] = []
    words: tuple[str, ...] = ()
    for option, value in pairwise(argv):
        if option == "-append":
            words = tuple(word for word in value.split() if not word.startswith(_OWN_WORDS))
        elif option == "-machine":
            kept = [
                part for part in value.split(",") if not part.startswith(("memory-backend=", "isa-serial="))
            ]
            if kept[0] == "microvm":
                kept.append("isa-serial=off")
            options += [option, ",".join(kept)]
        elif option in _MACHINE_OPTIONS:
            options += [option, value]
    return Computer(qemu, tuple(options), kernel, words, memory_mib)


def raw_qemu(
    computer: Computer, init: str, *, console: bool = False, shared_memory: bool = False
) -> list[str]:
    """Return QEMU with the host's tree over 9p as its root, as a person would start it by hand.

    ``init`` is its first program with its arguments; when that ends the kernel panics, ``panic=-1`` makes this a
    restart at once, and ``-no-reboot`` makes that the end of QEMU: nothing shorter is known. ``console`` gives it a
    serial port on standard output, ``shared_memory`` keeps its memory in a file as cloche's is, which has a name.
    """
    options = list(computer.options)
    words = [*computer.words, _ROOT_9P]
    extra: list[str] = []
    if console:
        options = [part.replace("isa-serial=off", "isa-serial=on") for part in options]
        words += ["console=ttyS0", "8250.nr_uarts=1"]
        extra += ["-serial", "stdio"]
    if shared_memory:
        place = options.index("-machine") + 1
        options[place] += ",memory-backend=memory"
        size = f"size={computer.memory_mib}M"
        extra += ["-object", f"memory-backend-file,id=memory,{size},share=on,mem-path=/dev/shm,align=2M"]
    program, _, arguments = init.partition(" ")
    # Words that the kernel does not know are arguments of init. No "--" before them: QEMU adds the places of the
    # virtio slots at the end, and the kernel reads nothing behind "--".
    words += [f"init={program}", *([arguments] if arguments else [])]
    return [
        *(computer.qemu, *_BARE, *options, *extra),
        *("-kernel", computer.kernel, "-append", " ".join(words)),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-device,fsdev=root,mount_tag=hostroot"),
    ]


def bubblewrapped(argv: Sequence[str], visible: Sequence[str] = ()) -> list[str]:
    """Return the command in bubblewrap: every namespace its own, no capability, /usr and ``visible`` read-only."""
    shown = [word for path in visible for word in ("--ro-bind", path, path)]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--ro-bind", "/usr", "/usr"),
        *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        *shown,
        "--",
        *argv,
    ]


def sandboxed(argv: Sequence[str]) -> list[str]:
    """Return a QEMU command line with the filter cloche's own VMM has."""
    return [argv[0], *_SANDBOX, *argv[1:]]


def with_initramfs(computer: Computer, initramfs: str) -> list[str]:
    """Return raw QEMU on cloche's computer with an initramfs as its whole system."""
    return [
        *(computer.qemu, *_BARE, *computer.options),
        *("-kernel", computer.kernel, "-initrd", initramfs, "-append", " ".join(computer.words)),
    ]


def plain_pc(qemu: str, kernel: str, initramfs: str, memory_mib: int) -> list[str]:
    """Return raw QEMU as its manual shows it: a ``pc`` by emulation, a distribution's kernel, nothing tuned."""
    return [
        *(qemu, *_BARE, "-M", "pc", "-accel", "tcg", "-m", f"{memory_mib}M"),
        *("-kernel", kernel, "-initrd", initramfs, "-append", "panic=-1 quiet"),
    ]


def virtme(vng: str, kernel: str, command: str, *more: str) -> list[str]:
    """Return virtme-ng without KVM, running ``command`` on a kernel."""
    return [vng, "--disable-kvm", *more, "--run", kernel, "--exec", command]


def to_microvm(argv: Sequence[str]) -> list[str]:
    """Return virtme-ng's QEMU command line for a microvm.

    virtme-ng uses microvm under KVM only, and its q35 needs PCI, which cloche's kernel does not have. So the machine,
    and with it the bus of every device, is replaced; devices, their number and order stay its own. The watchdog, a PCI
    device that nothing here uses, goes.
    """
    out: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "-vga":
            next(words, "")
        elif word == "-machine":
            next(words, "")
            out += ["-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on"]
        elif word == "-device":
            name, comma, rest = next(words, "").partition(",")
            if not name.startswith("i6300esb"):
                if name.endswith("-pci"):
                    name = name.removesuffix("-pci") + "-device"
                out += ["-device", name + comma + rest]
        elif word == "-append":
            # The kernel has a serial port only if it is told so; virtme-ng's console is on it.
            out += ["-append", next(words, "") + " 8250.nr_uarts=1"]
        else:
            out.append(word)
    return ["-nodefaults", "-no-user-config", *out]
