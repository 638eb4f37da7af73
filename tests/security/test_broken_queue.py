"""A queue that was broken: it is left alone until something new is put in, and not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import vhost
from support.liars import is_alive, liar
from support.vhost import QUEUE_BYTES, QUEUE_SIZE, WRITABLE, Descriptor

if TYPE_CHECKING:
    from support.vhost import DeviceProcess


@pytest.mark.parametrize("features", [0, vhost.EVENT_IDX])
def test_a_broken_queue_is_kicked_again(victim: tuple[DeviceProcess, int], features: int) -> None:
    """After a head that does not exist the device asks for a kick at the next, and answers what is behind it."""
    queue = victim[1] - 1
    with liar(victim, features=features) as frontend:
        frontend.put_descriptor(0, Descriptor(0x10_0000, 16, WRITABLE, 0), queue)
        # The good one behind the broken one is in the ring before the device looks.
        frontend.put_available(0, QUEUE_SIZE, queue)
        frontend.put_available(1, 0, queue)
        frontend.set_available(2, queue)
        frontend.kick(queue)
        # The second answer comes after the look that the first kick was for.
        assert is_alive(frontend)
        assert is_alive(frontend)
        used = queue * QUEUE_BYTES + 0x2000
        if features:
            assert frontend.read_half(used + 4 + 8 * QUEUE_SIZE) == 2
        else:
            assert frontend.read_half(used) == 0
        frontend.put_available(2, 0, queue)
        frontend.set_available(3, queue)
        frontend.kick(queue)
        assert is_alive(frontend)
        assert is_alive(frontend)
        assert frontend.used(queue) == 2
