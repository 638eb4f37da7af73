"""Whether KVM works here (layer 3a; DESIGN D11): the result of a trial, remembered; never a guess.

``/dev/kvm`` can exist, open and create machines and still not run a guest kernel. ``cloche doctor`` boots the guest
kernel under KVM with a deadline (``domain.trial``) and remembers the outcome here, for this host kernel and device.
"""

from __future__ import annotations

import os
import stat

from cloche.errors import HostError
from cloche.host import xdg
from cloche.model.jail import AS_IS, OWN

_DEVICE = "/dev/kvm"
_FILE = "kvm-trial"


def _key() -> str:
    uname = os.uname()
    return f"{uname.release} {uname.version}"


def kvm_accessible() -> bool:
    """Tell whether the device exists and the caller's machines may open it (which proves little)."""
    return os.access(_DEVICE, os.R_OK | os.W_OK) and (os.getuid() != 0 or kvm_group() != AS_IS)


def kvm_group() -> int:
    """Return the group that may use KVM, OWN when everybody may, AS_IS when only its owner or nobody may.

    A machine of root's runs under an id of its own: what root may do does not help it.
    """
    try:
        status = os.stat(_DEVICE)
    except OSError:
        return AS_IS
    if status.st_mode & stat.S_IRWXO >= stat.S_IROTH | stat.S_IWOTH:
        return OWN
    shared = status.st_mode & stat.S_IRWXG >= stat.S_IRGRP | stat.S_IWGRP and status.st_gid != 0
    return status.st_gid if shared else AS_IS


def kvm_result() -> bool | None:
    """Return what the trial on this host kernel said; None when there was none; False without access to the device."""
    if not kvm_accessible():
        return False
    try:
        with open(os.path.join(xdg.cache_dir(), _FILE), encoding="utf-8") as file:
            key, _, outcome = file.read().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return outcome.startswith("works") if key == _key() else None


def remember_kvm(works: bool, why: str) -> None:
    """Keep the outcome of a trial for this host kernel.

    Raises:
        HostError: It cannot be kept.
    """
    path = os.path.join(xdg.ensure_directory(xdg.cache_dir()), _FILE)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{_key()}\n{'works' if works else 'fails'}: {why}\n")
        os.replace(temporary, path)
    except OSError as error:
        raise HostError(
            f"cannot keep {path}: {error.strerror}",
            hint="Free some space there, or point XDG_CACHE_HOME to another place.",
        ) from None
