// What states are called.

const STATES = {
  queued: "waiting",
  in_progress: "being made",
  completed: "done",
  failed: "failed",
  cancelled: "cancelled",
};

export function stateInWords(video) {
  const word = STATES[video.status] ?? video.status;
  return video.degraded?.length && video.status === "completed" ? `${word}, degraded` : word;
}

export function seconds(ms) {
  return ms >= 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`;
}
