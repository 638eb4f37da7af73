"""The stage: which parts of the host a guest may see (layer 2, pure; DESIGN D2).

The stage is written as a list of root operations: the same list builds the root of the file server that serves a
virtual machine and the root of a container. What is not named here does not exist in the guest.
"""

from __future__ import annotations

from cloche.model.jail import Bind, BindFlag, Dir, File, Symlink
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts, PathFact, User
    from cloche.model.jail import RootOp

#: Trees of programs and data, and what they are. On a usr-merged system most are links, and stay links.
TREES = (
    ("/usr", "programs, libraries, /usr/local among them"),
    ("/bin", "programs"),
    ("/sbin", "programs"),
    ("/lib", "libraries"),
    ("/lib32", "libraries"),
    ("/lib64", "libraries, and the loader that programs name"),
    ("/libx32", "libraries"),
    ("/opt", "programs of other vendors"),
    ("/nix/store", "programs of Nix"),
    ("/nix/var/nix/profiles", "which programs of Nix are in use"),
    ("/run/current-system", "NixOS: the system in use, by which programs are found"),
    ("/gnu/store", "programs of Guix"),
)
SYSTEM_TREES = tuple(path for path, _ in TREES)
#: Links that the guest makes itself, in /run, which it fills when all else is in place.
_LATE = "/run/"

#: The parts of /etc that software needs and that hold no secret. Everything else of /etc is made by ``etc_files``
#: or does not exist. Left out on purpose: shadow and its kin, ssh, ssl/private, sudoers, machine-id, hostname, hosts,
#: resolv.conf, NetworkManager, wpa_supplicant, cups, cron, systemd, fstab, crypttab, krb5*, and what may hold
#: passwords or tokens: apt, environment, gitconfig, maven/settings.xml, npmrc, php's server pools, pip.conf, wgetrc.
ETC_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "which program a name means",
        (
            "alternatives",
            # NixOS: what its other files are links into, and the programs of each user
            "static",
            "profiles",
        ),
    ),
    (
        "the dynamic linker",
        (
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
        ),
    ),
    (
        "language, time, terminal",
        (
            "locale.alias",
            "locale.conf",
            "default/locale",
            "localtime",
            "timezone",
            "terminfo",
            "inputrc",
            "vconsole.conf",
        ),
    ),
    (
        "certificates of authorities (never the private half)",
        (
            "ca-certificates",
            "ca-certificates.conf",
            "ssl/certs",
            "ssl/openssl.cnf",
            "ssl/cert.pem",
            "pki/tls/certs",
            "pki/tls/cert.pem",
            "pki/tls/openssl.cnf",
            "pki/ca-trust",
            "crypto-policies",
        ),
    ),
    (
        "fonts, icons, graphics, sound as programs look for them",
        (
            "fonts",
            "X11",
            "xdg",
            "gtk-2.0",
            "gtk-3.0",
            "gtk-4.0",
            "glvnd",
            "vulkan",
            "OpenCL",
            "drirc",
            "alsa",
            "asound.conf",
            "pulse",
            "pipewire",
            "openal",
        ),
    ),
    (
        "shells and their completion",
        (
            "bash.bashrc",
            "bash_completion",
            "bash_completion.d",
            "profile",
            "profile.d",
            "shells",
            "skel",
            "zsh",
            "zshrc",
            "fish",
            "csh.cshrc",
            "csh.login",
            "login.defs",
        ),
    ),
    (
        "languages and tools",
        (
            "python3",
            "python3.10",
            "python3.11",
            "python3.12",
            "python3.13",
            "perl",
            "java",
            "java-11-openjdk",
            "java-17-openjdk",
            "java-21-openjdk",
            "lua",
            *(
                f"php/{version}/{part}"
                for version in ("7.4", "8.1", "8.2", "8.3", "8.4")
                for part in ("cli", "mods-available")
            ),
            "ruby",
            "R",
            "ghc",
            "maven/logging",
            "maven/m2.conf",
            "emacs",
            "vim",
            "vimrc",
            "nanorc",
            "joe",
            "less",
            "lesskey",
            "manpath.config",
            "man_db.conf",
            "groff",
            "texmf",
            "papersize",
            "libpaper.d",
            "ImageMagick-6",
            "ImageMagick-7",
            "ghostscript",
            "dictionaries-common",
            "hunspell",
            "sgml",
            "xml",
            "screenrc",
            "tmux.conf",
            "rmt",
            "magic",
            "magic.mime",
            "mailcap",
            "mime.types",
        ),
    ),
    (
        "names of services and protocols, and how names are looked up",
        (
            "nsswitch.conf",
            "host.conf",
            "gai.conf",
            "services",
            "protocols",
            "rpc",
            "networks",
            "ethertypes",
        ),
    ),
    (
        "what system this is",
        (
            "debian_version",
            "os-release",
            "lsb-release",
            "redhat-release",
            "system-release",
            "fedora-release",
            "arch-release",
            "issue",
            "dpkg/origins",
        ),
    ),
    (
        "so that setuid programs of the guest (su, passwd) find their rules",
        (
            "pam.conf",
            "pam.d",
            "security/pam_env.conf",
            "security/limits.conf",
        ),
    ),
)
ETC_ENTRIES = tuple(name for _, names in ETC_GROUPS for name in names)

#: Directories every system has and whose content is never the host's.
EMPTY_DIRECTORIES = (
    ("/dev", 0o755),
    ("/proc", 0o755),
    ("/sys", 0o755),
    ("/run", 0o755),
    ("/run/lock", 0o1777),
    ("/tmp", 0o1777),
    ("/home", 0o755),
    ("/root", 0o700),
    ("/mnt", 0o755),
    ("/media", 0o755),
    ("/srv", 0o755),
    ("/var", 0o755),
    ("/var/cache", 0o755),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/mail", 0o755),
    ("/var/opt", 0o755),
    ("/var/spool", 0o755),
    ("/var/tmp", 0o1777),
    ("/var/lib/dbus", 0o755),
)

_READ_ONLY = BindFlag.READ_ONLY | BindFlag.NODEV | BindFlag.RECURSIVE | BindFlag.OPTIONAL


def stage_candidates() -> tuple[str, ...]:
    """Return every host path whose existence decides about the stage."""
    return SYSTEM_TREES + tuple(f"/etc/{name}" for name in ETC_ENTRIES)


def build_stage(facts: HostFacts, *, hostname: str, machine_id: str, source: str = "") -> tuple[RootOp, ...]:
    """Return the operations that build the system tree of one domain.

    Args:
        facts: What exists on the host and who is calling.
        hostname: The guest's host name.
        machine_id: 32 hexadecimal digits of this domain's own.
        source: Where the host's root is; for a tree that was put somewhere else.
    """
    ops: list[RootOp] = [Dir(path.encode(), mode) for path, mode in EMPTY_DIRECTORIES]
    ops.append(Dir(b"/etc", 0o755))
    for path in stage_candidates():
        fact = facts.paths.get(path)
        # Of /run nothing is shown but links to what is elsewhere.
        if fact is not None and (fact.kind == "link" or not path.startswith(_LATE)):
            ops.append(_show(path, fact, source))
    for path, mode, content in etc_files(facts.user, hostname=hostname, machine_id=machine_id):
        ops.append(File(path.encode(), mode, content))
    for target, path in (
        ("/proc/self/mounts", "/etc/mtab"),
        ("/etc/machine-id", "/var/lib/dbus/machine-id"),
        ("/run", "/var/run"),
        ("/run/lock", "/var/lock"),
    ):
        ops.append(Symlink(target.encode(), path.encode()))
    return tuple(ops)


def below(prefix: bytes, ops: tuple[RootOp, ...]) -> tuple[RootOp, ...]:
    """Return the same operations for a tree that lies below ``prefix``."""
    return tuple(op._replace(path=prefix + op.path) for op in ops)


def late_links(facts: HostFacts) -> tuple[tuple[bytes, bytes], ...]:
    """Return the links, as target and path, of what the stage shows in /run: there a machine has a tree of its own."""
    found = ((path, facts.paths.get(path)) for path in SYSTEM_TREES if path.startswith(_LATE))
    return tuple(
        (fact.target.encode("utf-8", "surrogateescape"), path.encode())
        for path, fact in found
        if fact is not None and fact.kind == "link"
    )


def _show(path: str, fact: PathFact, source: str) -> RootOp:
    if fact.kind == "link":
        return Symlink(fact.target.encode("utf-8", "surrogateescape"), path.encode())
    return Bind(source.encode("utf-8", "surrogateescape") + path.encode(), path.encode(), _READ_ONLY)


def _field(text: str) -> str:
    """Return what a line of passwd can hold of ``text``: a colon or a line end would begin a field or a user."""
    return "".join(
        " " if char == ":" or not (char.isprintable() or 0xDC80 <= ord(char) <= 0xDCFF) else char
        for char in text
    )


def _names(line: str, name: str, number: int) -> bool:
    """Tell whether a line of passwd or group is about this name or number; root's is nobody else's."""
    fields = line.split(":")
    return fields[2] != "0" and (fields[0] == name or fields[2] == str(number))


def etc_files(user: User, *, hostname: str, machine_id: str) -> tuple[tuple[str, int, bytes], ...]:
    """Return (path, mode, content) of the files of /etc that are the guest's own.

    The password file knows root, daemon, nobody and the caller; nobody has a password. A caller who is one of them
    on the host takes the line's place.
    """
    name, group_name = _field(user.name), _field(user.group)
    passwd = ["root:x:0:0:root:/root:/bin/bash", "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin"]
    passwd.append("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin")
    group = ["root:x:0:", "daemon:x:1:", "tty:x:5:", "mail:x:8:", "utmp:x:43:", "shadow:x:42:", "staff:x:50:"]
    group.append("nogroup:x:65534:")
    shadow = ["root:*:19000:0:99999:7:::"]
    if user.uid != 0:
        passwd = [line for line in passwd if not _names(line, name, user.uid)]
        passwd.append(
            f"{name}:x:{user.uid}:{user.gid}:{_field(user.gecos)}:{_field(user.home)}:{_field(user.shell)}"
        )
        shadow.append(f"{name}:*:19000:0:99999:7:::")
    if user.gid != 0:
        group = [line for line in group if not _names(line, group_name, user.gid)]
        group.append(f"{group_name}:x:{user.gid}:")
    hosts = (
        f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    )

    def lines(items: list[str]) -> bytes:
        return ("\n".join(items) + "\n").encode("utf-8", "surrogateescape")

    return (
        ("/etc/passwd", 0o644, lines(passwd)),
        ("/etc/group", 0o644, lines(group)),
        ("/etc/shadow", 0o600, lines(shadow)),
        ("/etc/hosts", 0o644, hosts.encode()),
        ("/etc/hostname", 0o644, f"{hostname}\n".encode()),
        ("/etc/machine-id", 0o444, f"{machine_id}\n".encode()),
        ("/etc/resolv.conf", 0o644, b"# This domain has no network.\n"),
        ("/etc/fstab", 0o644, b""),
        ("/etc/subuid", 0o644, b""),
        ("/etc/subgid", 0o644, b""),
    )
