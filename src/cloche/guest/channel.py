"""What the host knows of a conversation with an agent (layer 3, pure): saved with a machine, to be gone on with later.

The agent's half lies in the guest's memory. The two fit together if the host's was taken while the machine stood still:
an attach then sends again whatever the other side has not got (``protocol/README.md`` section 4).
"""

from __future__ import annotations

from cloche.record import Record


class SenderState(Record):
    """A stream to the agent.

    Attributes:
        stream: Its id.
        acked: Offset below which the agent's reader is done.
        next: Offset of the next byte that would be written.
        limit: Offset up to which the agent lets us send.
        data: What lies between ``acked`` and ``next``; nothing once the reader is gone.
        known: The agent has shown that it knows the stream.
        ended: Nothing more is written.
        aborted: It ended because its source broke.
        stopped: The agent's reader is gone.
        eof_sent: Its end was ever sent.
    """

    stream: int
    acked: int
    next: int
    limit: int
    data: bytes
    known: bool
    ended: bool
    aborted: bool
    stopped: bool
    eof_sent: bool


class ReceiverState(Record):
    """A stream from the agent.

    Attributes:
        stream: Its id.
        consumed: Offset up to which its reader took the bytes.
        limit: The highest offset granted.
        data: What was received and not taken.
        known: The agent is known to have the stream.
        stopped: Its reader is gone.
    """

    stream: int
    consumed: int
    limit: int
    data: bytes
    known: bool
    stopped: bool


class MuxState(Record):
    """All streams of a conversation.

    Attributes:
        session: The agent's key.
        next_even: The next id for a stream to the agent.
        next_odd: The next id for a stream from it.
        backlog: Control messages, in whole or the rest of one, that the control stream had no room for.
    """

    session: bytes
    next_even: int
    next_odd: int
    senders: tuple[SenderState, ...]
    receivers: tuple[ReceiverState, ...]
    backlog: bytes


class JobState(Record):
    """A program that runs, and the ids of its streams; 0 for none (no job's stream has the id 0).

    Attributes:
        number: The job's id.
        pid: The guest's process id; 0 as long as it is not known.
        typed: The stream of what is typed, where that is not the program's stdin.
        terminal: Whether it has a terminal.
        exited: How it has ended, if its output alone is still on the way: kind and value of EXITED.
    """

    number: int
    pid: int
    stdin: int
    stdout: int
    stderr: int
    typed: int
    terminal: bool
    exited: tuple[int, int] | None


class ChannelState(Record):
    """A whole conversation.

    Attributes:
        agent: The agent's version.
        kernel: The guest's kernel.
        jobs: What runs.
        next_job: The next job's id.
        next_seq: The next request's number.
        setups: Requests that the agent has not answered.
        syncs: Likewise.
    """

    mux: MuxState
    agent: bytes
    kernel: bytes
    jobs: tuple[JobState, ...]
    next_job: int
    next_seq: int
    setups: tuple[int, ...]
    syncs: tuple[int, ...]
