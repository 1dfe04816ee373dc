// What is known of one search: its chunks, their candidates, which still live, and which became the video.
//
// Fed with the events of a job in any number of replays: an event that was seen before changes nothing.
// Knows nothing of the page.

export const PRUNED = "pruned"; // dropped when its chunk was judged
export const ENDED = "ended"; // kept, but neither in the video nor behind anything that may still be
export const ALIVE = "alive"; // part of a history that may still become the video
export const SETTLED = "settled"; // part of the video

export class Search {
  constructor() {
    this.turns = []; // by chunk: {index, candidates, byRank, stageMs, histories, expansions}
    this.settled = []; // by chunk: {index, frames, seed, route, short, long, fused}
    this.switches = new Map(); // chunk -> the prompt from there on
    this.chunks = 0; // how many the video is going to have
    this.over = false; // nothing more is drawn
    this.fates = undefined; // candidate -> fate; worked out when it is asked for
  }

  // Takes one event; true when something changed.
  take(event) {
    switch (event.event) {
      case "began":
        return this.#begin(event);
      case "turn":
        return this.#turn(event);
      case "settled":
        return this.#settle(event);
      case "switched":
        if (this.switches.get(event.chunk) === event.prompt) return false;
        this.switches.set(event.chunk, event.prompt);
        return true;
      case "done":
      case "failed":
      case "cancelled":
        this.over = true;
        this.fates = undefined;
        return true;
      default:
        return false;
    }
  }

  // Frames that can no longer change.
  get frames() {
    return this.settled.reduce((sum, one) => sum + (one?.frames ?? 0), 0);
  }

  // The candidate of the chunk before that this one goes on from; undefined at chunk 0 and while it is unknown.
  parentOf(index, candidate) {
    return candidate.parent === null ? undefined : this.turns[index - 1]?.byRank.get(candidate.parent);
  }

  childrenOf(index, candidate) {
    const next = this.turns[index + 1];
    if (!next || candidate.rank === null) return [];
    return next.candidates.filter((one) => one.parent === candidate.rank);
  }

  fateOf(candidate) {
    this.fates ??= this.#judged();
    return this.fates.get(candidate) ?? PRUNED;
  }

  // Milliseconds by stage: of the newest chunk and of all together.
  stages() {
    const total = new Map();
    let last = {};
    for (const turn of this.turns) {
      if (!turn || !Object.keys(turn.stageMs).length) continue;
      last = turn.stageMs;
      for (const [stage, ms] of Object.entries(last)) total.set(stage, (total.get(stage) ?? 0) + ms);
    }
    return [...total].map(([stage, ms]) => ({ stage, total: ms, last: last[stage] ?? 0 }));
  }

  #begin(event) {
    const news = this.over || this.chunks !== event.chunks;
    this.over = false;
    this.chunks = event.chunks;
    if (news) this.fates = undefined;
    return news;
  }

  #turn(event) {
    const before = this.turns[event.index];
    const seeds = (turn) => turn.candidates.map((one) => `${one.seed} ${one.rank} ${one.fused}`).join();
    if (before && seeds(before) === seeds(event)) return false;
    // A job that went on from a snapshot makes chunks again; what came after the old ones is no longer true.
    if (before) this.turns.length = event.index;
    const byRank = new Map();
    for (const one of event.candidates) if (one.rank !== null) byRank.set(one.rank, one);
    this.turns[event.index] = {
      index: event.index,
      candidates: event.candidates,
      byRank,
      stageMs: event.stage_ms ?? {},
      histories: event.histories,
      expansions: event.expansions,
    };
    this.fates = undefined;
    return true;
  }

  #settle(event) {
    const before = this.settled[event.index];
    if (before && before.seed === event.seed && before.bytes === event.bytes) return false;
    if (before) this.settled.length = event.index;
    this.settled[event.index] = event;
    this.fates = undefined;
    return true;
  }

  // The fate of every candidate that was kept: walked back from the newest survivors, and along the settled path.
  #judged() {
    const fates = new Map();
    for (const turn of this.turns) {
      for (const one of turn?.byRank.values() ?? []) fates.set(one, ENDED);
    }
    const newest = this.turns.length - 1;
    let alive = new Set(this.over ? [] : this.turns[newest]?.byRank.values());
    for (let index = newest; index >= 0 && alive.size; index -= 1) {
      const parents = new Set();
      for (const one of alive) {
        fates.set(one, ALIVE);
        const parent = this.parentOf(index, one);
        if (parent) parents.add(parent);
      }
      alive = parents;
    }
    for (const one of this.settled.map((told) => this.#candidateOf(told))) if (one) fates.set(one, SETTLED);
    return fates;
  }

  // Seeds may repeat within a chunk; scores tell the twins apart.
  #candidateOf(settled) {
    const turn = this.turns[settled?.index];
    if (!turn) return undefined;
    const found = [...turn.byRank.values()].filter((one) => one.seed === settled.seed);
    if (found.length < 2) return found[0];
    const same = found.filter((one) => one.short === settled.short && one.long === settled.long);
    return same[0] ?? found[0];
  }
}

// The events that a finished job's trace stands for: the way to see a search whose events are gone.
export function* eventsOf(trace) {
  yield { event: "began", chunks: trace.planned_chunks ?? trace.chunks.length, chunk: 0 };
  for (const chunk of trace.chunks) {
    const candidates = chunk.candidates.map((one) => ({
      ...one,
      thumbnail: `data:image/jpeg;base64,${one.thumbnail}`,
    }));
    yield { ...chunk, event: "turn", candidates };
  }
  for (const [index, seed] of trace.path.entries()) {
    yield { event: "settled", index, seed };
  }
  yield { event: trace.outcome === "finished" ? "done" : "failed" };
}
