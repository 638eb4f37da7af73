"""Which Debian packages are needed, and for what."""

from __future__ import annotations

from typing import NamedTuple

#: What a plain ``cloche run`` needs.
RUN = (
    "bubblewrap",  # the driver for hosts without a VMM
    "cpio",  # `cloche kernel fetch` puts modules into the guest's first file system
    "e2fsprogs",  # the disks of profiles, and their check in a guest
    "kmod",  # the order in which those modules are loaded
    "qemu-system-x86",
    "xz-utils",  # Debian's modules are compressed
)
#: To compile the agent, the warden and the file server.
RUST = (
    "build-essential",
    "ca-certificates",
    "libcap-ng-dev",  # linked into the file server
)
#: Where no cargo is there or only one that is too old: the packages with a new one, by preference, each with the
#: packages that bring its rustfmt and clippy.
CARGO = (
    ("cargo", "rustc", "rustfmt", "rust-clippy"),
    (
        "cargo-web",
        "rustc-web",
        "rustfmt-web",
        "rust-web-clippy",
    ),  # Debian 12 keeps these new for its browsers
)
#: For the Python environment.
PYTHON = ("ca-certificates", "python3-venv")
#: To compile the guest kernel. (Its source is fetched without being installed, by `cloche kernel build`.)
KERNEL = (
    "bc",
    "bison",
    "build-essential",
    "cpio",
    "flex",
    "kmod",
    "libelf-dev",
    "xz-utils",
)
#: What the tests run, on the host and in the guest (which sees the host's /usr).
TEST = (
    "busybox-static",  # a root tree of one program
    "dosfstools",  # images of the file systems that a guest can mount
    "erofs-utils",
    "file",
    "git",
    "iproute2",  # addresses for a guest's network card
    "less",
    "man-db",
    "mmdebstrap",  # the root tree of another release, made without rights
    "passt",  # the other end of a guest's network card
    "perl",
    "procps",
    "shellcheck",
    "squashfs-tools",
    "strace",
    "tmux",
    "util-linux",  # `unshare`: a namespace with a network for a guest to speak with
    "vim-tiny",
    "xorriso",
)
#: For the tests that take minutes.
LONG = (
    "libpython3-testsuite",  # Python's own tests judge the guest's file systems
    "sqlite3",
)
#: For `make check`.
CHECK = ("shellcheck",)
#: For `make bench`.
BENCH = (
    "busybox-static",  # the smallest guest there is
    "fio",  # in the guest, which sees the host's
    "hyperfine",
    "udev",  # how virtme-ng's guest finds its ports
)

#: The groups by name, as `tools/setup system` and the other stages ask for them.
GROUPS = {
    "run": RUN,
    "rust": RUST,
    "python": PYTHON,
    "kernel": KERNEL,
    "test": TEST,
    "long": LONG,
    "check": CHECK,
    "bench": BENCH,
}

#: Older machines run, but cannot add a file server to a template (DESIGN.md, section 4, D5).
QEMU = "qemu-system-x86"
QEMU_PREFERRED = 10


class Missing(NamedTuple):
    """What has to be installed.

    ``plain`` comes from the release, ``qemu`` is whether QEMU is to come from its backports, ``cargo`` whether a new
    enough Rust compiler is needed, ``lints`` whether rustfmt and clippy are.
    """

    plain: tuple[str, ...]
    qemu: bool
    cargo: bool
    lints: bool
