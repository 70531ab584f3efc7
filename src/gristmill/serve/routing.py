"""Which replica answers: the one that knows the longest prefix of the conversation, unless it has too much to do.

A replica's engine keeps the keys and values of what it has read (the prefix cache), so a conversation's next turn costs
less where the turns before it were answered. Prefixes are compared as chains of hashes of text, not of tokens: whoever
routes needs no tokenizer. The rule is a pure function of what was routed before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from typing import Any

BLOCK_CHARACTERS = 32  # about 8 tokens; an engine's cache has blocks of 16
MAX_BLOCKS = 1024  # of a prompt; those that agree so far go to the same replica
MAX_KNOWN = 1 << 16  # blocks remembered of a replica: 2M characters, some MiB here
MAX_AHEAD = 4  # answers that the replica of a prefix may have under way beyond the least busy one

# In the order in which templates write them, what stays the same over a conversation's turns first.
_PREFIX_FIELDS = ("tools", "system", "instructions", "messages", "input", "prompt")


def prefix_of(body: Mapping[str, Any]) -> tuple[bytes, ...]:
    """A request's prompt as a chain of hashes, one for each whole block of its text: two prompts for the same model
    share the first n hashes where their first n blocks agree. () for a body without a prompt.

    Only the words of messages count, roles and tools among them: what all requests are made of tells none apart.
    """
    text = "\0".join(_words([body.get(name) for name in _PREFIX_FIELDS]))
    chain: list[bytes] = []
    hashed = str(body.get("model")).encode(errors="surrogatepass")
    for end in range(BLOCK_CHARACTERS, len(text) + 1, BLOCK_CHARACTERS):
        block = text[end - BLOCK_CHARACTERS : end].encode(errors="surrogatepass")
        hashed = blake2b(hashed + block, digest_size=12).digest()
        chain.append(hashed)
    return tuple(chain)


def _words(value: Any) -> Iterator[str]:
    """Strings and numbers in the order in which JSON writes them, without names; not more than are hashed."""
    left, rest = MAX_BLOCKS * BLOCK_CHARACTERS, [value]
    while rest and left > 0:
        match rest.pop():
            case dict() as fields:
                rest.extend(reversed(fields.values()))
            case list() as items:
                rest.extend(reversed(items))
            case None:
                pass
            case item:
                word = str(item)[:left]
                left -= len(word) + 1
                yield word


class PrefixAffinity:
    """Remembers which replica has read which prefixes, and what each has under way."""

    def __init__(self, max_ahead: int = MAX_AHEAD, max_known: int = MAX_KNOWN) -> None:
        self.max_ahead, self.max_known = max_ahead, max_known
        self._known: dict[str, OrderedDict[bytes, None]] = {}  # the latest used last
        self._under_way: dict[str, str] = {}  # request -> replica

    def order(self, prefix: tuple[bytes, ...], replicas: Collection[str]) -> list[str]:
        """The replicas, the best first: those that know more of the prefix, of these the less busy, of these whoever
        has read less so far. One with more than `max_ahead` answers beyond the least busy comes after all others.

        A prompt that nobody knows goes to the least busy replica.
        """
        load = {replica: self.load(replica) for replica in replicas}
        bound = min(load.values(), default=0) + self.max_ahead

        def rank(replica: str) -> tuple[bool, int, int, int, str]:
            known = self._known.get(replica, ())
            shared = next((n for n, block in enumerate(prefix) if block not in known), len(prefix))
            return (load[replica] > bound, -shared, load[replica], len(known), replica)

        return sorted(replicas, key=rank)

    def load(self, replica: str) -> int:
        """Its answers under way."""
        return sum(at == replica for at in self._under_way.values())

    def begin(self, request: str, replica: str, prefix: tuple[bytes, ...]) -> None:
        """`request` goes to `replica`, which will know its prefix. One that begins again elsewhere moves there."""
        self._under_way[request] = replica
        known = self._known.setdefault(replica, OrderedDict())
        for block in reversed(prefix):  # what many prompts share is forgotten last
            known[block] = None
            known.move_to_end(block)
        while len(known) > self.max_known:
            known.popitem(last=False)

    def end(self, request: str) -> None:
        """It was answered, or given up. Of no effect for one that has ended."""
        self._under_way.pop(request, None)

    def keep(self, replicas: Collection[str]) -> None:
        """Forget all others: a replica that has died knows nothing, nor does the one in its place."""
        for gone in self._known.keys() - set(replicas):
            del self._known[gone]
        for request, replica in list(self._under_way.items()):
            if replica not in replicas:
                del self._under_way[request]
