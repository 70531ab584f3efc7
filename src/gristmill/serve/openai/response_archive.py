"""The responses that a server has kept, and those under way with nobody waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gristmill.serve.errors import ApiError, FieldError
from gristmill.serve.openai.messages import MAX_MESSAGES
from gristmill.serve.openai.response_items import Fields
from gristmill.serve.store import Store

NO_STORE = "this server keeps nothing: it was started without a store"


class Background(Protocol):
    """A response that is made with nobody waiting for it."""

    response: Fields
    deleted: bool

    async def cancel(self) -> None:
        """Returns when it has ended, and is kept."""
        ...


@dataclass
class Archive:
    """Of one server. under_way: by their ids."""

    store: Store | None
    under_way: dict[str, Background]

    async def keep(self, response: Fields, items: Sequence[Fields]) -> None:
        """items: of the request's own input."""
        assert self.store is not None
        document = {"response": response, "input": list(items)}
        previous = response["previous_response_id"]
        await asyncio.to_thread(self.store.put_response, response["id"], document, previous)

    async def response(self, id: str) -> Fields:
        """As it is now. Raises ApiError, 404."""
        if id in self.under_way:
            return self.under_way[id].response
        return (await asyncio.to_thread(self._stored, id))[0]["response"]

    async def cancel(self, id: str) -> Fields:
        """As it is after its end. Raises ApiError."""
        if id in self.under_way:
            await self.under_way[id].cancel()
        response = await self.response(id)
        if not response["background"]:
            raise ApiError(400, f"{id} has no background: true; close its connection to cancel it")
        return response

    async def delete(self, id: str) -> None:
        """Raises ApiError, 404."""
        there = self.under_way.get(id)
        if there is not None:
            there.deleted = True
            await there.cancel()
        store = self._open_store()
        if not await asyncio.to_thread(store.delete_response, id):
            raise _unknown(id)

    async def input_of(self, id: str) -> list[Fields]:
        """All the items that this response was made from, those of the responses before it first. Raises ApiError."""

        def items() -> list[Fields]:
            document, previous = self._stored(id)
            return [*self._items_until(previous), *document["input"]]

        return await asyncio.to_thread(items)

    async def conversation(self, id: str | None) -> list[Fields]:
        """The items up to the end of this response, which a new one continues. Raises FieldError and ApiError."""
        if id is None:
            return []
        if self.store is None:
            raise FieldError("previous_response_id", f"{NO_STORE}. Send the whole conversation")
        try:
            status = (await self.response(id))["status"]
        except ApiError as error:
            raise _broken(str(error)) from None
        if status not in ("completed", "incomplete"):
            raise FieldError("previous_response_id", f"{id} has the status {status}")
        return await asyncio.to_thread(self._items_until, id)

    def _items_until(self, id: str | None) -> list[Fields]:
        turns: list[list[Fields]] = []
        last = id
        while id is not None:
            try:
                document, before = self._stored(id)
            except ApiError:
                raise _broken(f"{last} goes back to {id}, which was deleted") from None
            turns.append([*document["input"], *document["response"]["output"]])
            if sum(map(len, turns)) > MAX_MESSAGES:
                raise FieldError(
                    "previous_response_id", f"the conversation has more than {MAX_MESSAGES} items"
                )
            id = before
        return [item for turn in reversed(turns) for item in turn]

    def _stored(self, id: str) -> tuple[dict[str, Any], str | None]:
        found = self._open_store().response(id)
        if found is None:
            raise _unknown(id)
        return found

    def _open_store(self) -> Store:
        if self.store is None:
            raise ApiError(404, NO_STORE, code="no_store")
        return self.store


def _unknown(id: str) -> ApiError:
    return ApiError(404, f"there is no response {id!r:.80} here", code="response_not_found")


def _broken(message: str) -> ApiError:
    code = "previous_response_not_found"
    return ApiError(404, message, param="previous_response_id", code=code)
