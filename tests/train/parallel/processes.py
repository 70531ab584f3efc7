"""A function on several real processes, joined by gloo over loopback."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

_START = 120.0  # seconds for the ranks to import and to find each other
_OTHERS = 1.0  # seconds in which the other ranks may still say what they died of


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 60
) -> list[Any]:
    """What `function(rank, *args)` returns on each of `world` processes, by rank.

    The default process group is joined before it is called and left after it. `function` is one that an import
    finds; arguments and results are pickled (tensors by value). Raises AssertionError with the tracebacks of the
    ranks that raised, in the order in which they did; or when a rank died, or not all ended within `timeout`
    seconds of the last one's start. No process outlives the call.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = pickle.dumps((function, args))
    # They are forked from a server that has imported all this and has no threads yet: a fork of this process would
    # inherit its threads' locks, and importing in each rank takes most of a test.
    context = get_context("forkserver")
    context.set_forkserver_preload(["gristmill.train", "gristmill.data", "pytest", "hypothesis"])
    ears, processes = [], []
    for rank in range(world):
        ear, mouth = context.Pipe(duplex=False)
        common = (mouth, rank, world, store.port, work)
        process = context.Process(target=_rank, args=common, daemon=True)
        process.start()
        mouth.close()  # only the rank holds it now, so that its death ends the pipe
        ears.append(ear)
        processes.append(process)
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    deadline = time.monotonic() + _START
    try:
        while len(results) + len(failures) < world:
            left = deadline - time.monotonic()
            ready = wait([e for r, e in enumerate(ears) if r not in {*results, *failures}], left)
            if not ready:
                break
            for ear in ready:
                rank = ears.index(ear)  # type: ignore[arg-type]
                try:
                    good, told = pickle.loads(ears[rank].recv_bytes())
                except EOFError:
                    processes[rank].join(1)
                    good, told = False, f"died with exit code {processes[rank].exitcode}"
                if good is None:  # it has started
                    deadline = deadline if failures else time.monotonic() + timeout
                elif good:
                    results[rank] = told
                else:
                    failures[rank] = told
                    deadline = min(deadline, time.monotonic() + _OTHERS)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for ear in ears:
            ear.close()
    if failures:
        raise AssertionError("\n".join(f"rank {rank}: {told}" for rank, told in failures.items()))
    late = sorted(set(range(world)) - set(results))
    assert not late, f"ranks {late} of {world} did not end within {timeout:g} seconds"
    return [results[rank] for rank in range(world)]


def _rank(mouth: Connection, rank: int, world: int, port: int, work: bytes) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        function, args = pickle.loads(work)
        limit = timedelta(seconds=_START)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        mouth.send_bytes(pickle.dumps((None, None)))
        result = function(rank, *args)
        dist.barrier()  # a rank that left early would break what the others still send
        mouth.send_bytes(pickle.dumps((True, result)))
    except BaseException:
        mouth.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
