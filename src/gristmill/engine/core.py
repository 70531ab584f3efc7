"""The loop: schedule, run, sample, keep books, emit. One thread adds requests and steps.

plan     which requests compute how many tokens (`scheduler`), after drafts were asked for
run      one ragged batch through the network (`runner`)
sample   a token for each request whose tokens are all computed, and one after each of its drafts
keep     drafts that equal what was drawn stay, the rest is forgotten; full blocks become known
emit     the text that each request gained
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gristmill.engine.blocks import BlockPool
from gristmill.engine.drafting import Drafter
from gristmill.engine.generation import Generation
from gristmill.engine.masks import token_masks
from gristmill.engine.pace import Acceptance, Pace
from gristmill.engine.ragged import Span, ragged
from gristmill.engine.reading import read_prompt
from gristmill.engine.runner import Runner
from gristmill.engine.sampler import sample, token_logprob
from gristmill.engine.scheduler import Plan, Scheduler, Work
from gristmill.engine.stats import Stats
from gristmill.errors import GristmillError, WorkError
from gristmill.lm import Chunk

Event = tuple[Generation, Chunk]
Masks = tuple[Tensor | None, dict[int, Exception]]

log = logging.getLogger("gristmill.engine")


@dataclass(frozen=True)
class Load:
    """At one moment: requests that run and that wait, and the share of the cache that the running ones hold."""

    running: int
    waiting: int
    cache: float


@dataclass(frozen=True)
class _Draw:
    """Rows of the step's hidden states after which a request draws: one, and one after each of its drafts."""

    generation: Generation
    rows: range


class EngineCore:
    """Requests in flight on one runner."""

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        *,
        vocab_size: int,
        context: int,
        step_tokens: int,
        max_rows: int,
        drafter: Drafter | None = None,
        max_drafts: int = 0,
        adaptive_drafts: bool = True,
    ) -> None:
        self.runner, self.stats = runner, Stats()
        self.scheduler = Scheduler(pool, step_tokens, max_rows)
        self._pool, self._vocab_size, self._context = pool, vocab_size, context
        self._drafter, self._max_drafts = drafter, max_drafts
        self._pace, self._adaptive = Pace(), adaptive_drafts
        self._acceptance: WeakKeyDictionary[Generation, Acceptance] = WeakKeyDictionary()
        self._grammar_thread: ThreadPoolExecutor | None = None

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def load(self) -> Load:
        """Any thread may ask."""
        free = self._pool.num_free / max(1, self._pool.num_blocks)
        return Load(len(self.scheduler.running), len(self.scheduler.waiting), 1 - free)

    def everyone(self) -> list[Generation]:
        """All that run, wait, or are to start with one that waits."""
        present = [*self.scheduler.running, *self.scheduler.waiting]
        return present + [sibling for g in present for sibling in g.siblings]

    def add(self, generation: Generation) -> None:
        self.scheduler.waiting.append(generation)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute one batch; what each request that gained something or ended got."""
        events = self._without_cancelled()
        plan = self._plan()
        self.stats.planned(plan)
        if not plan.work:
            return events
        begun = time.perf_counter()
        spans = [self._span(work) for work in plan.work]
        draws = self._draws(plan.work, spans)
        masks = self._begin_masks(draws)
        hidden_WD = self.runner.hidden(ragged(spans, self._pool.block_size))
        for g, rows_TD in self._reading(plan.work, spans, hidden_WD):
            read_prompt(self.runner, g, rows_TD, self._vocab_size)
        for g, count in ((work.generation, work.count) for work in plan.work):
            g.num_computed += count
            if g.pending:  # whose prompt begins alike need not wait for all of it
                self._pool.publish(g.prefix, g.tokens, g.table, g.num_computed)
        events += self._draw(draws, hidden_WD, masks)
        for g in (work.generation for work in plan.work):
            if g.task != "generate" and g.pending == 0:
                events.append((g, g.end("length")))
                self._leave(g)
        self._record(plan, spans, time.perf_counter() - begun)
        return events

    def forget_prefixes(self) -> None:
        """The weights changed: what is cached serves only those who run."""
        self._pool.forget_all()

    def _without_cancelled(self) -> list[Event]:
        present = [*self.scheduler.running, *self.scheduler.waiting]
        cancelled = [g for g in present if g.cancelled]
        cancelled += [sibling for g in cancelled for sibling in g.siblings]  # of one request
        for g in cancelled:
            g.cancelled = True
            self._leave(g)
        return [(g, g.end("abort")) for g in cancelled]

    def _leave(self, g: Generation) -> None:
        """Its blocks are free, and what they hold can be found."""
        if g.table:
            self._pool.publish(g.prefix, g.tokens, g.table, g.num_computed)
        self.scheduler.leave(g)
        self.scheduler.waiting.extend(g.siblings)  # they were to share what it computes
        g.siblings = []

    def _plan(self) -> Plan:
        for g in [g for g in self.scheduler.running if g.outgrew_frequencies]:
            self.scheduler.restart(g)
        if self._drafter is not None:
            self._drafter.follow(self.scheduler.running)
        plan = self.scheduler.schedule(self._drafts_wanted)
        for source, target in plan.copies:
            self.runner.copy_block(source, target)
            if self._drafter is not None:
                self._drafter.copy_block(source, target)
        for g in self.scheduler.running:
            g.drafts = []
        for work in plan.work:
            work.generation.drafts = work.generation.forced[: work.drafts]
        asked = [(w.generation, w.drafts) for w in plan.work if w.drafts > len(w.generation.drafts)]
        if asked and self._drafter is not None:
            self._pace.took(self._drafter.propose(asked))
            for g, _ in asked:
                if g.matcher is not None:
                    g.drafts = g.drafts[: g.matcher.validate(g.drafts)]
        return plan

    def _drafts_wanted(self, g: Generation, rows: int) -> int:
        most = g.room_for_drafts(self._context)
        if g.forced or self._drafter is None or most < 1:
            return min(len(g.forced), most)
        most = min(most, self._max_drafts, self._drafter.room(g))
        known = self._acceptance.setdefault(g, self._pace.newcomer())
        if not self._adaptive:
            return most
        return self._pace.drafts(known, rows, most)

    def _span(self, work: Work) -> Span:
        g = work.generation
        tokens = [*g.rest(work.count), *g.drafts]
        draws = 1 + len(g.drafts) if work.count == g.pending else 0
        wanted = work.count if g.reads_prompt else draws
        return Span(tokens, g.num_computed, g.table, g.num_tokens, wanted, g.adapter)

    def _draws(self, work: Sequence[Work], spans: Sequence[Span]) -> list[_Draw]:
        """Who draws in this step; other answers to a prompt draw where it ends, and run from there."""
        draws: list[_Draw] = []
        end, free = 0, self.scheduler.max_rows - len(self.scheduler.running)
        for w, span in zip(work, spans, strict=True):
            g, end = w.generation, end + span.wanted
            if w.count == g.pending and g.task == "generate":
                draws.append(_Draw(g, range(end - 1 - len(g.drafts), end)))
                self.scheduler.waiting.extend(g.siblings[free:])  # for whom there is no row
                g.siblings = g.siblings[:free]
                free -= len(g.siblings)
                draws += [_Draw(sibling, range(end - 1, end)) for sibling in g.siblings]
        return draws

    def _begin_masks(self, draws: Sequence[_Draw]) -> Future[Masks] | None:
        """The grammars' masks are made while the network computes: they need only the tokens so far."""
        if all(d.generation.matcher is None for d in draws):
            return None
        if self._grammar_thread is None:
            self._grammar_thread = ThreadPoolExecutor(1, "gristmill-grammar")
        asked = [(d.generation.matcher, d.generation.drafts, 0) for d in draws]
        return self._grammar_thread.submit(token_masks, asked, self._vocab_size)

    def _draw(
        self, draws: Sequence[_Draw], hidden_WD: Tensor, masks: Future[Masks] | None
    ) -> list[Event]:
        """Draw for every row; keep of each request's tokens what goes together."""
        if not draws:
            return []
        rows = [row for d in draws for row in d.rows]
        once = list(dict.fromkeys(rows))  # answers to one prompt draw after the same row
        # Mostly those are all there are, in order.
        logits = self.runner.logits(hidden_WD if len(once) == len(hidden_WD) else hidden_WD[once])
        if len(once) < len(rows):
            logits = logits[[once.index(row) for row in rows]]
        allowed, failed = (None, {}) if masks is None else masks.result()
        histories = [history for d in draws for history in d.generation.histories()]
        # Ids beyond the vocabulary pad some models' embeddings and were never trained.
        tokens, sampled = sample(logits[:, : self._vocab_size], histories, allowed)
        # Greedily a NaN or an infinity is the likeliest of all; it must not pass for a token.
        said = logits[range(len(tokens)), tokens].tolist()
        sampled = [p if s < inf else -inf for s, p in zip(said, sampled, strict=True)]
        events: list[Event] = []
        at = 0
        for number, d in enumerate(draws):
            g, these = d.generation, slice(at, at + len(d.rows))
            at += len(d.rows)
            if g not in self.scheduler.running:
                parent = next(p.generation for p in draws if g in p.generation.siblings)
                self.scheduler.fork(parent, g)
            try:
                if number in failed:
                    raise failed[number]
                chunk = self._append(g, tokens[these], sampled[these], logits[these])
            except Exception as error:  # whatever it is, it is this request's alone
                told = str(error)
                if not isinstance(error, GristmillError):
                    log.exception("a request failed")
                    told = "the engine failed at this request; its log says how"
                chunk = g.end("error", error=told)
            events.append((g, chunk))
        for d in draws:
            d.generation.siblings = []
            if d.generation.completion is not None:
                self._leave(d.generation)
        return events

    def _append(
        self, g: Generation, drawn: list[int], sampled: list[float], logits_TV: Tensor
    ) -> Chunk:
        """Take tokens while they are what was drafted: the one after them is drawn too, the rest is void."""
        forced = len(g.forced)
        text, examined, accepted, reason = "", 0, 0, None
        for i, token in enumerate(drawn):
            if i < forced:
                token = g.forced.pop(0)
            elif sampled[i] == -inf:
                raise _no_token(logits_TV[i], g.num_tokens)
            if g.params.logprobs is not None:
                share = 0.0 if i < forced else sampled[i]  # nothing else could come
                top = g.params.logprobs
                g.logprobs.append(token_logprob(logits_TV[i], token, top, share))
            piece, reason = g.append(token, self._context)
            text += piece
            kept = i < len(g.drafts) and g.drafts[i] == token
            examined += i < len(g.drafts)
            accepted += kept
            if i >= forced and g.matcher is not None and g.may_jump and reason is None:
                g.forced = g.matcher.forced()
            if reason is not None or not kept or (g.forced and i >= forced):
                break
        if g.drafts and not forced and self._drafter is not None:
            self._drafter.verified(g, accepted)
            self._pace.verified(self._acceptance[g], examined, accepted)
            self.stats.verified(len(g.drafts), examined, accepted)
        self.stats.generated += i + 1
        # The last token's logits are wanted again where what it forces cut the drafts short.
        g.num_computed = min(g.num_computed + accepted, g.num_tokens - 1)
        self._pool.publish(g.prefix, g.tokens, g.table, g.num_computed)
        return Chunk(text) if reason is None else g.end(reason, text)

    def _reading(
        self, work: Sequence[Work], spans: Sequence[Span], hidden_WD: Tensor
    ) -> Iterator[tuple[Generation, Tensor]]:
        """Requests whose prompts are read, each with the hidden states of what this step computed of it."""
        at = 0
        for w, span in zip(work, spans, strict=True):
            if w.generation.reads_prompt:
                yield w.generation, hidden_WD[at : at + span.wanted]
            at += span.wanted

    def _record(self, plan: Plan, spans: Sequence[Span], seconds: float) -> None:
        tokens = sum(len(span.tokens) for span in spans)
        if all(work.count == 1 for work in plan.work):
            self._pace.times.record(tokens, seconds)
        self.stats.steps += 1
        self.stats.computed += tokens


def _no_token(logits_V: Tensor, position: int) -> WorkError:
    """Why nothing could be drawn."""
    if not bool((logits_V < inf).all()):  # NaN is not less either
        return WorkError(
            f"the model's logits are not finite at position {position}: its weights are damaged, or its numbers grow "
            "too large for its dtype"
        )
    return WorkError("grammar, allowed tokens and bad words together leave no token")
