"""What the server's process does with memory that its threads have freed."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gradio")

import gradio as gr

from app import heap
from app.sessions import Sessions, lean

BLOCKS, BLOCK = 1000, 64_000  # bytes each: too small to be mapped by itself, so the heap holds it


def resident():
    """Bytes of this process's own memory that are in RAM."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not heap._glibc or not Path("/proc/self/status").exists(), reason="glibc on Linux alone")
def test_what_was_freed_below_something_alive_goes_back():
    blocks = [np.ones(BLOCK, np.uint8) for _ in range(BLOCKS)]
    alive = blocks[::100]  # without them the C library would give all of it back by itself
    blocks.clear()
    before = resident()
    heap.trim()
    assert before - resident() > BLOCKS * BLOCK // 2 and all(block.all() for block in alive)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", False)
    monkeypatch.setattr(heap, "_libc", None)
    heap.trim()
    heap.share_arenas()


def test_a_server_gives_memory_back_from_start_to_stop(monkeypatch):
    async def serve():
        loop, times, twice = asyncio.get_running_loop(), [], asyncio.Event()

        def trimmed():
            times.append(True)
            if len(times) == 2:
                loop.call_soon_threadsafe(twice.set)

        monkeypatch.setattr(heap, "SECONDS", 0)
        monkeypatch.setattr(heap, "trim", trimmed)
        blocks = gr.Blocks()
        app, before = SimpleNamespace(get_blocks=lambda: blocks), asyncio.all_tasks()
        async with lean(app):
            assert isinstance(app.state_holder, Sessions)
            await asyncio.wait_for(twice.wait(), 60)
            started = asyncio.all_tasks() - before
        await asyncio.wait(started)
        assert len(started) == 1 and all(task.cancelled() for task in started)

    asyncio.run(serve())


@pytest.mark.parametrize("growth, failed", [(0, 0), (1, 0), (3, 1)])
def test_the_soak_fails_where_memory_stays_and_not_where_it_is_taken_for_a_moment(growth, failed, monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from app_soak import verdict

    seconds = np.arange(600)
    resident = 700 + 150.0 * (seconds % 10 < 8) + growth * seconds / 60
    seen = np.stack([seconds / 60, resident, np.full(600, 30), np.zeros(600)], 1)
    assert verdict(seen, 3, Counter())[1] == failed
