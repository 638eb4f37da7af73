"""The API in a notebook: an IPython kernel, whose asyncio loop runs already when a cell is executed."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

PATIENCE_S = 120


class Notebook:
    """A kernel and what a notebook does with it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager = manager
        self._client = client

    def cell(self, source: str) -> Any:
        """Execute a cell and return the value of its last expression."""
        return self._answer(self._client.execute(source))

    def interrupted_cell(self, source: str, when: str) -> str:
        """Execute a cell, interrupt it once it has printed ``when``, and return the name of its error."""
        asked = self._client.execute(source)
        while True:
            message = self._client.get_iopub_msg(timeout=PATIENCE_S)
            if message["msg_type"] == "stream" and when in message["content"]["text"]:
                break
        self._manager.interrupt_kernel()
        reply = self._reply(asked)
        return str(reply["ename"])

    def _reply(self, asked: str) -> dict[str, Any]:
        while True:
            reply = self._client.get_shell_msg(timeout=PATIENCE_S)
            if reply["parent_header"]["msg_id"] == asked:
                content: dict[str, Any] = reply["content"]
                return content

    def _answer(self, asked: str) -> Any:
        value = None
        while True:
            message = self._client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "execute_result":
                value = ast.literal_eval(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                pytest.fail("\n".join(content["traceback"]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return value


@pytest.fixture(scope="module")
def notebook(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """Start an IPython kernel with cloche on its path, which counts its forks."""
    manager = KernelManager(connection_file=str(tmp_path_factory.mktemp("kernel") / "connection.json"))
    manager.start_kernel(stdout=sys.__stdout__, stderr=sys.__stderr__)
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE_S)
        opened = Notebook(manager, client)
        opened.cell(f"import sys; sys.path.insert(0, {str(project / 'src')!r})")
        opened.cell("import os; forks = []; os.register_at_fork(before=lambda: forks.append(1))")
        yield opened
        assert opened.cell("len(forks)") == 0
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_run_and_sandbox_in_a_cell(notebook: Notebook) -> None:
    """``cloche.run`` and ``cloche.Sandbox`` work in a cell although a loop runs in its thread."""
    assert notebook.cell("import asyncio; asyncio.get_running_loop().is_running()") is True
    notebook.cell("import cloche")
    assert notebook.cell("cloche.run(['echo', 'hello'], capture_output=True, text=True).stdout") == "hello\n"
    source = "with cloche.Sandbox() as box:\n    said = box.check_output(['expr', '6', '*', '7'])\nsaid"
    assert notebook.cell(source) == b"42\n"


def test_awaiting_in_a_cell(notebook: Notebook) -> None:
    """``cloche.aio`` is awaited in the notebook's own loop, which turns meanwhile."""
    notebook.cell("from cloche import aio")
    assert notebook.cell("(await aio.run(['echo', 'hi'], capture_output=True)).stdout") == b"hi\n"
    source = """
        turns = 0
        async def count():
            global turns
            while True:
                turns += 1
                await asyncio.sleep(0)
        counting = asyncio.ensure_future(count())
        async with aio.Sandbox() as box:
            done = await asyncio.gather(*(box.run(['echo', str(n)], capture_output=True) for n in range(3)))
        counting.cancel()
        [one.stdout for one in done], turns > 100
    """
    assert notebook.cell(source) == ([b"0\n", b"1\n", b"2\n"], True)


def test_interrupting_a_cell(notebook: Notebook) -> None:
    """Interrupting a cell ends its machine; the notebook and the next cell go on."""
    source = "print('started', flush=True); cloche.run(['sleep', '1000'])"
    assert notebook.interrupted_cell(f"import cloche; {source}", "started") == "KeyboardInterrupt"
    assert notebook.cell("cloche.run(['true']).returncode") == 0
    children = "from pathlib import Path; Path(f'/proc/self/task/{os.getpid()}/children').read_text()"
    assert notebook.cell(children) == ""
