// Readings of /app/stats over the last minutes, and the rates between them. No DOM.

const KEPT = 150; // readings: five minutes at one in two seconds

const rate = (before, now, seconds) => (seconds > 0 && now >= before ? (now - before) / seconds : null);
const share = (part, whole) => (whole > 0 ? part / whole : null);

export class History {
  constructor() {
    this.before = null;
    this.points = new Map(); // name -> points, oldest first
  }

  add(stats) {
    const { before } = this;
    this.before = stats;
    for (const [name, now] of Object.entries(stats.models)) {
      const points = this.points.get(name) ?? [];
      points.push(point(now, before?.models[name], before ? stats.time - before.time : 0));
      this.points.set(name, points.slice(-KEPT));
    }
  }

  of(name) {
    return this.points.get(name) ?? [];
  }
}

// What a chart draws; null where there is nothing to tell, as for a rate at the first reading.
function point(now, before, seconds) {
  const since = (field) => (before ? now[field] - before[field] : 0);
  return {
    generation: before ? rate(before.generation_tokens, now.generation_tokens, seconds) : null,
    prompt: before ? rate(before.prompt_tokens, now.prompt_tokens, seconds) : null,
    running: now.running,
    waiting: now.waiting,
    cache: now.cache_usage,
    ttft50: now.ttft_seconds?.[0] ?? null,
    ttft95: now.ttft_seconds?.[1] ?? null,
    token50: now.inter_token_seconds?.[0] ?? null,
    token95: now.inter_token_seconds?.[1] ?? null,
    prefix: share(since("prefix_hits"), since("prefix_queries")) ?? share(now.prefix_hits, now.prefix_queries),
    accepted: share(since("spec_accepted"), since("spec_drafted")) ?? share(now.spec_accepted, now.spec_drafted),
  };
}
