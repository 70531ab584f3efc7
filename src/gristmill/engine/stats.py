"""What the engine has done since it started: counters that a server exposes and a benchmark reads."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.engine.scheduler import Plan


@dataclass
class Stats:
    """Counts of tokens, but for `steps`, `preemptions` and `requests`."""

    steps: int = 0
    requests: int = 0
    computed: int = 0  # through the network, refused drafts included
    generated: int = 0
    prefix_cache_queries: int = 0  # of prompts
    prefix_cache_hits: int = 0
    preemptions: int = 0
    spec_drafted: int = 0
    spec_examined: int = 0  # those after the first refused one were not
    spec_accepted: int = 0

    @property
    def spec_accepted_per_examined(self) -> float:
        """The acceptance rate α; 0 when nothing was drafted."""
        return self.spec_accepted / self.spec_examined if self.spec_examined else 0.0

    def planned(self, plan: Plan) -> None:
        self.preemptions += len(plan.preempted)
        for g in plan.admitted:
            self.prefix_cache_queries += len(g.prompt)
            self.prefix_cache_hits += g.cached_tokens or 0

    def verified(self, drafted: int, examined: int, accepted: int) -> None:
        self.spec_drafted += drafted
        self.spec_examined += examined
        self.spec_accepted += accepted
