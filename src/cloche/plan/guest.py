"""What the agent does before the program, and the program's surroundings (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    Clock,
    CopyTree,
    Entropy,
    GuestCommand,
    Hostname,
    Loopback,
    Mkdir,
    Mount,
    Step,
    SwitchRoot,
)
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts, User
    from cloche.model.request import RunRequest, Share

SYSTEM_TAG = b"system"
SHARES_TAG = b"shares"

#: Index, metadata copies and redirects would tie the upper layer to the inodes of a lower one that may change
#: (DESIGN D2).
OVERLAY_OPTIONS = b"index=off,metacopy=off,redirect_dir=off,xino=off"

_USER_PATH = b"/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
_ROOT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables of the caller that say how a person wants programs to speak, and nothing about the host.
_PASSED_ON = (
    b"TERM",
    b"COLORTERM",
    b"LANG",
    b"LANGUAGE",
    b"TZ",
    b"NO_COLOR",
    b"CLICOLOR",
    b"LS_COLORS",
    b"EDITOR",
    b"VISUAL",
    b"PAGER",
    b"LESS",
)


def build_machine_steps(user: User, shares: tuple[Share, ...], *, hostname: str) -> tuple[Step, ...]:
    """Return the SETUP steps of a virtual machine: mounts, writable layer, home, names.

    Everything is done below /cloche before the root is switched, so that nothing has to be undone.
    """
    base, root = b"/cloche", b"/cloche/root"
    steps: list[Step] = [
        Mkdir(base + b"/system"),
        Mkdir(base + b"/layer"),
        Mkdir(root),
        Mount(b"virtiofs", SYSTEM_TAG, base + b"/system", MS_RDONLY),
        Mount(b"tmpfs", b"layer", base + b"/layer", 0, b"mode=0755,size=90%"),
        Mkdir(base + b"/layer/upper"),
        Mkdir(base + b"/layer/work"),
        Mount(
            b"overlay",
            b"cloche",
            root,
            0,
            b"lowerdir=/cloche/system,upperdir=/cloche/layer/upper,workdir=/cloche/layer/work,"
            + OVERLAY_OPTIONS,
        ),
    ]
    steps += build_home_steps(user, prefix=root)
    if shares:
        steps.append(Mkdir(base + b"/shares"))
        steps.append(Mount(b"virtiofs", SHARES_TAG, base + b"/shares", MS_NOSUID | MS_NODEV))
    for index, share in sorted(enumerate(shares), key=lambda pair: pair[1].target):
        target = root + share.target.encode("utf-8", "surrogateescape")
        steps.append(Mkdir(target))
        steps.append(Mount(b"", b"%s/shares/%d" % (base, index), target, MS_BIND | MS_REC))
        if not share.writable:
            steps.append(Mount(b"", b"", target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV))
    steps += [SwitchRoot(root), Hostname(hostname.encode()), Loopback(), Clock(), Entropy()]
    return tuple(steps)


def build_home_steps(user: User, *, prefix: bytes = b"") -> tuple[Step, ...]:
    """Return the steps that make a fresh home from /etc/skel."""
    home = prefix + user.home.encode("utf-8", "surrogateescape")
    return (
        Mkdir(home, 0o700, user.uid, user.gid),
        CopyTree(prefix + b"/etc/skel", home, user.uid, user.gid),
    )


def resolve_user(request: RunRequest, user: User) -> User:
    """Return whom the program runs as: the caller, root, or a number.

    Raises:
        UsageError: A name the guest does not know (it knows root, nobody and the caller), or contradictory options.
    """
    root = user._replace(
        name="root", uid=0, gid=0, group="root", home="/root", shell="/bin/bash", gecos="root"
    )
    if request.privileged and request.user not in (None, "root", "0"):
        raise UsageError("--privileged and --user contradict each other", hint="Give one of them.")
    if request.privileged or request.user in ("root", "0"):
        return root
    if request.user is None or request.user in (user.name, str(user.uid)):
        return user
    if request.user in ("nobody", "65534"):
        return user._replace(
            name="nobody", uid=65534, gid=65534, group="nogroup", home="/", shell="/bin/sh", gecos=""
        )
    if request.user.isascii() and request.user.isdigit() and int(request.user) < 2**32 - 1:
        number = int(request.user)
        return user._replace(
            name=request.user, uid=number, gid=number, group=request.user, home="/", gecos=""
        )
    raise UsageError(
        f"the guest knows no user {request.user!r}",
        hint=f"It knows root, {user.name} and nobody; a number is taken as it is.",
    )


def build_environment(
    request: RunRequest, facts: HostFacts, person: User, shown: tuple[str, ...]
) -> tuple[bytes, ...]:
    """Return the program's environment as ``NAME=value``.

    Nothing of the host's environment is taken but language, time zone and terminal; the directories of the caller's
    PATH that exist in the guest are kept in their order.
    """
    host = facts.environment
    env = {name: host[name] for name in _PASSED_ON if name in host}
    env.update((name, value) for name, value in host.items() if name.startswith(b"LC_"))
    env[b"HOME"] = person.home.encode("utf-8", "surrogateescape")
    env[b"USER"] = env[b"LOGNAME"] = person.name.encode("utf-8", "surrogateescape")
    env[b"SHELL"] = person.shell.encode("utf-8", "surrogateescape")
    env[b"PATH"] = guest_path(host.get(b"PATH", b""), person, shown)
    env.setdefault(b"TERM", b"dumb")
    env.update(request.env)
    for name in env:
        if not name or b"=" in name or b"\0" in name:
            raise UsageError(f"{name!r} cannot be the name of an environment variable")
    return tuple(name + b"=" + value for name, value in env.items())


def guest_path(caller_path: bytes, person: User, shown: tuple[str, ...]) -> bytes:
    """Return the PATH of the guest: the caller's directories that the guest has, then the usual ones."""
    usual = (_ROOT_PATH if person.uid == 0 else _USER_PATH).split(b":")
    roots = tuple(path.encode("utf-8", "surrogateescape") for path in shown)
    kept = [part for part in caller_path.split(b":") if is_below(part, roots)]
    ordered: dict[bytes, None] = dict.fromkeys(kept + usual)
    return b":".join(ordered)


def is_below(path: bytes, roots: tuple[bytes, ...]) -> bool:
    """Tell whether an absolute path is one of ``roots`` or inside one."""
    return path.startswith(b"/") and any(
        path == root or path.startswith(root.rstrip(b"/") + b"/") for root in roots
    )


def build_command(
    request: RunRequest, facts: HostFacts, person: User, shown: tuple[str, ...]
) -> GuestCommand:
    """Return the program with everything it inherits.

    ``shown`` are the trees of the host that the guest sees at the same place. The working directory is the one asked
    for, else the caller's if it lies in such a tree, else the home.
    """
    roots = tuple(path.encode("utf-8", "surrogateescape") for path in shown)
    here = facts.cwd.encode("utf-8", "surrogateescape")
    if request.workdir is not None:
        cwd = request.workdir.encode("utf-8", "surrogateescape")
    elif is_below(here, roots):
        cwd = here
    else:
        cwd = person.home.encode("utf-8", "surrogateescape")
    for word in request.argv:
        if b"\0" in word:
            raise UsageError("an argument holds a NUL byte, which no program can be given")
    return GuestCommand(
        argv=request.argv,
        env=build_environment(request, facts, person, shown),
        cwd=cwd,
        uid=person.uid,
        gid=person.gid,
        groups=(person.gid,),
        umask=facts.umask,
        pids_max=request.pids or 0,
        strace=request.strace,
    )
