"""What was said already (layer 3a): notices are given once for each host kernel, not at every run."""

from __future__ import annotations

import os
import zlib

from cloche.errors import HostError
from cloche.host import xdg


def first_time(line: str) -> bool:
    """Tell whether ``line`` has not been said on this host kernel yet, and remember that it now was.

    Without a usable cache directory every time is the first.
    """
    key = f"{zlib.crc32(f'{os.uname().release} {line}'.encode('utf-8', 'surrogateescape')):08x}"
    try:
        directory = xdg.ensure_directory(os.path.join(xdg.cache_dir(), "said"))
        os.close(
            os.open(os.path.join(directory, key), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        )
    except FileExistsError:
        return False
    except (OSError, HostError):
        return True
    return True
