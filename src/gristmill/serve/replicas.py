"""Replicas of a server on this machine: each a process with engines of its own, which Ray Serve starts, routes to and
replaces when it dies. HTTP stays in front (`front`), and Ray's own proxy is left out: it sees no bodies, and a
conversation's place is told by its body.

Importing this imports Ray, which reads its environment then: see `front.replicas`.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve._private import replica as ray_replica
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.types import Message

from gristmill.errors import GristmillError, WorkError
from gristmill.serve.app import build_app
from gristmill.serve.front import CHARGED, RECORD, SETTLED, Call, Plan, Told
from gristmill.serve.keys import KeyFile
from gristmill.serve.limits import Allowance, Limits
from gristmill.serve.logs import Record
from gristmill.serve.middleware import Operations
from gristmill.serve.routing import PrefixAffinity
from gristmill.serve.store import Store
from gristmill.serve.worker import Unavailable

OBJECT_STORE_BYTES = 128 << 20  # nothing as large as a prompt stays there
HEALTH_SECONDS = 2.0
BATCH_SECONDS = 0.001  # that a batch costs of Ray's time, whatever is in it
log = logging.getLogger("gristmill.serve")


class Replicas:
    """All of them, for an event loop of the process that started them."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def describe(self) -> list[Told]:
        """Waits. Raises what loading raised in one of them."""
        told = self._handle.broadcast("describe").results()
        if failed := next((each.failure for each in told if each.failure), None):
            raise failed
        return sorted(told, key=lambda each: each.rank)

    async def answer(self, call: Call) -> AsyncIterator[list[Message]]:
        """The messages of one replica's response as they come. Closing it, or cancelling who waits for it, is to the
        replica as if the client had left. Raises Unavailable when the replica dies."""
        response = self._handle.options(method_name="answer", stream=True).remote(call)
        ended = False
        try:
            async for batch in response:
                yield batch
            ended = True
        except RayActorError:
            raise Unavailable("the replica that answered has died; ask again") from None
        finally:
            if not ended:
                response.cancel()

    async def fetch(self, call: Call) -> list[tuple[int, bytes]]:
        """Of each replica that lives, its rank and what it answers."""
        return await self._each("fetch", call)

    async def abort(self) -> None:
        """End all that is under way in good order."""
        await self._each("abort")

    async def _each(self, method: str, *args: Any) -> list[Any]:
        got = await self._handle.broadcast(method, *args).results_async(return_exceptions=True)
        return [each for each in got if not isinstance(each, BaseException)]


@contextmanager
def running(plan: Plan, count: int) -> Iterator[Replicas]:
    """`count` replicas while it lasts. Raises WorkError where Ray does not get them up, and what loading raised."""
    with tempfile.TemporaryDirectory(prefix="gristmill-") as directory:
        try:
            try:
                handle = _started(plan, count, Path(directory))
            except (RayError, RuntimeError) as error:
                raise WorkError(f"the replicas did not start: {error}") from None
            yield Replicas(handle)
        finally:
            ray.shutdown()


def _started(plan: Plan, count: int, directory: Path) -> Any:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(directory),
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployed = serve.deployment(
        Replica,
        num_replicas=count,
        max_ongoing_requests=1 << 16,  # ours refuses earlier, and says so
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=HEALTH_SECONDS,
        request_router_config={"request_router_class": PrefixRouter},
        logging_config=quiet,
    )
    threads = max(1, torch.get_num_threads() // count)
    app = deployed.bind(plan, directory, threads)
    return serve.run(app, name="gristmill", route_prefix=None)


class PrefixRouter(RequestRouter):
    """Ray's question of where a request goes, answered by `PrefixAffinity`. Belongs to one event loop."""

    def initialize_state(self, **_: Any) -> None:
        self._affinity = PrefixAffinity()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        by_id = {each.replica_id.unique_id: each for each in candidate_replicas}
        if pending_request is None:
            return [candidate_replicas]
        request, prefix = pending_request.metadata.internal_request_id, _prefix(pending_request)
        order = self._affinity.order(prefix, by_id)
        # Taken now, not when it is sent: others choose meanwhile.
        self._affinity.begin(request, order[0], prefix)
        pending_request.future.add_done_callback(
            lambda future: self._affinity.end(request) if future.cancelled() else None
        )
        return [[by_id[id]] for id in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        request, prefix = pending_request.metadata.internal_request_id, _prefix(pending_request)
        self._affinity.begin(request, replica_id.unique_id, prefix)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._affinity.end(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._affinity.keep([each.replica_id.unique_id for each in replicas])


def _prefix(pending: PendingRequest) -> tuple[bytes, ...]:
    return next((each.prefix for each in pending.args if isinstance(each, Call)), ())


class Replica:
    """One of them: the application without what stands before its routes, which is the front's. threads: for its
    engines."""

    def __init__(self, plan: Plan, directory: Path, threads: int) -> None:
        _listen_privately(directory)
        torch.set_num_threads(threads)
        self._plan, self._rank = plan, serve.get_replica_context().rank.rank
        self._failure: GristmillError | None = None
        self._checked = False
        self._operations = _Inner(keys=KeyFile(plan.keys) if plan.keys else None)
        self._answering: set[asyncio.Task[None]] = set()
        try:
            self._served = plan.load()
            store = Store(plan.store) if plan.store else None
        except Exception as error:
            told = error if isinstance(error, GristmillError) else WorkError(repr(error))
            self._failure, self._served = told, ()
            return
        self._app = build_app(self._served, self._operations, store)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._begun = asyncio.get_running_loop().create_task(self._lifespan.__aenter__())

    async def describe(self) -> Told:
        names = [each.name for each in self._served]
        own = [each for each in self._served if each.adapter is None]
        engines = {each.name: each.engine.describe() for each in own}
        retrieval = any(each.index for each in self._served)
        return Told(self._rank, names, engines, retrieval, self._failure)

    async def check_health(self) -> None:
        """Ray replaces one that raises. The first look comes before anyone was told why."""
        if self._failure is not None and self._checked:
            raise self._failure
        self._checked = True

    async def answer(self, call: Call) -> AsyncIterator[list[Message]]:
        """The response's messages, as many at once as there are."""
        if self._failure is not None:
            raise self._failure
        await self._begun
        waiting: list[Message] = []
        news, gone = asyncio.Event(), asyncio.Event()
        body = [{"type": "http.request", "body": call.body, "more_body": False}]

        def tell(message: Message) -> None:
            waiting.append(message)
            news.set()

        async def send(message: Message) -> None:
            tell(message)

        async def receive() -> Message:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        record, allowance = Record(), Relayed(_limits(call), call.key, tell=tell)
        state = {**call.scope["state"], "key": call.key, "record": record, "allowance": allowance}
        task = asyncio.ensure_future(self._app({**call.scope, "state": state}, receive, send))
        self._answering.add(task)
        task.add_done_callback(lambda _: (self._answering.discard(task), news.set()))
        try:
            while not task.done() or waiting:
                await news.wait()
                news.clear()
                if waiting:
                    batch = list(waiting)
                    waiting.clear()
                    yield batch
                    # Else many streams of a token each would wait for Ray and not for the engine.
                    await asyncio.wait({task}, timeout=len(self._answering) * BATCH_SECONDS)
            if error := task.exception():  # it was answered all the same
                log.error("%s failed", call.scope["path"], exc_info=error)
            if not self._plan.log_prompts:
                record.prompt = record.answer = None
            yield [{"type": RECORD, "record": vars(record)}]
        finally:
            gone.set()

    async def fetch(self, call: Call) -> tuple[int, bytes]:
        """This one's rank, and the body of its answer."""
        pieces = [m.get("body", b"") async for batch in self.answer(call) for m in batch]
        return self._rank, b"".join(pieces)

    async def abort(self) -> None:
        self._operations.lifecycle.abort()


class _Inner(Operations):
    """Nothing stands before the routes: it stands before all replicas."""

    def middleware(self) -> list[Any]:
        return []


@dataclass
class Relayed(Allowance):
    """Of a key whose account the front keeps: it is told what is charged and what it came to."""

    tell: Callable[[Message], None] = lambda message: None

    def charge(self, tokens: int, asked_for: bool = True) -> None:
        before = self.charged
        super().charge(tokens, asked_for)
        self.tell({"type": CHARGED, "tokens": self.charged - before})

    def settle(self, actual: int) -> None:
        if not self.settled:
            self.tell({"type": SETTLED, "tokens": actual})
        super().settle(actual)


def _limits(call: Call) -> Limits:
    limits = Limits()
    if call.key is not None:
        limits.account(call.key).tokens.used = call.tokens_used
    return limits


def _listen_privately(directory: Path) -> None:
    """Ray Serve has each replica listen on all of the machine's addresses, without a token, for pickles: whoever
    reaches it could run any code. Nothing here uses that port (calls go by Ray's actors), so it becomes a socket in a
    directory that nobody else may enter. A Ray that names it otherwise fails here and not silently."""
    listen = ray_replica.add_port_to_grpc_server
    socket = directory / f"{serve.get_replica_context().replica_id.unique_id}.sock"
    ray_replica.add_port_to_grpc_server = lambda server, address: listen(server, f"unix:{socket}")
