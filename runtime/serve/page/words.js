// What states and times are called.

const STATES = { queued: "waiting", in_progress: "being made", completed: "done", failed: "failed" };
const CODES = { cancelled: "cancelled", interrupted: "interrupted" }; // why a failed one did not get done

export function stateInWords(video) {
  const word = CODES[video.error?.code] ?? STATES[video.status] ?? video.status;
  return video.degraded?.length && video.status === "completed" ? `${word}, degraded` : word;
}

export function seconds(ms) {
  return ms >= 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`;
}
