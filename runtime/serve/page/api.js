// Talks to the server that this page came from, and to nobody else. The only file that knows routes and field names.

import { byId, say, show } from "./dom.js";

const FINAL = new Set(["completed", "failed"]);

export const isOver = (video) => FINAL.has(video.status);

// An answer that is not a success; `status` is 0 when the server was not reached at all.
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const at = (path) => new URL(path, document.baseURI);
const videoAt = (id, rest = "") => at(`v1/videos/${encodeURIComponent(id)}${rest}`);

// Like `fetch`; asks for the key when the server does, and throws ApiError for what is not a success.
async function call(url, options = {}) {
  for (;;) {
    const response = await reach(url, options);
    if (response.ok) return response;
    if (response.status !== 401) throw new ApiError(response.status, await sentence(response));
    await (asking ??= ask());
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, { ...options, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
}

// The server's own words for an error.
async function sentence(response) {
  const told = await response.json().catch(() => null);
  const words = told?.error?.message;
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  return `${typeof words === "string" ? words : `The server answered ${response.status}.`}${again}`;
}

let asking; // one dialog for all calls that wait

// Asks for the key until the server takes it. It is exchanged for a cookie that no script can read, and not kept.
async function ask() {
  const [dialog, input] = [byId("key"), byId("key-value")];
  show(byId("key-wrong"), false);
  for (;;) {
    input.value = "";
    if (!dialog.open) dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (!input.value) continue; // Escape: there is nothing to see without a key
    const headers = { Authorization: `Bearer ${input.value}` };
    const answer = await reach(at("v1/session"), { method: "POST", headers }).catch((error) => error);
    if (answer.ok) break;
    say(byId("key-wrong"), answer.message ?? "The server did not accept this key.");
    show(byId("key-wrong"), true);
  }
  input.value = "";
  asking = undefined;
}

// Seeds have 63 bits, more than a number here can hold: large ones are kept as they were written.
function parsed(text) {
  return JSON.parse(text, (_, value, context) => {
    const exact = typeof value !== "number" || !Number.isInteger(value) || Number.isSafeInteger(value);
    return exact ? value : (context?.source ?? value);
  });
}

const json = async (url, options) => parsed(await (await call(url, options)).text());

export async function videos(after) {
  const url = at("v1/videos");
  url.searchParams.set("limit", "50");
  if (after) url.searchParams.set("after", after);
  return json(url);
}

// `search` has policy, histories, expansions and perhaps seed.
export function create(prompt, seconds, search) {
  const wanted = { prompt, seconds, search };
  const headers = { "Content-Type": "application/json" };
  return json(at("v1/videos"), { method: "POST", headers, body: JSON.stringify(wanted) });
}

export const video = (id) => json(videoAt(id));
export const trace = (id) => json(videoAt(id, "/trace"));
export const traceAddress = (id) => videoAt(id, "/trace").href;
export const remove = (id) => call(videoAt(id), { method: "DELETE" });
export const stream = (id, signal) => call(videoAt(id, "/stream"), { signal });
export const contentAddress = (id) => videoAt(id, "/content").href;

// The events of a job from its first one on, and a way to talk back. Connects again when the connection breaks.
export class Live {
  // `take(event)` gets every event; `connected(yes)` says how it stands; `over()` answers whether the job has ended.
  constructor(id, take, connected, over) {
    Object.assign(this, { id, take, connected, over, wait: 500, stopped: false });
    this.#connect();
  }

  // Asks for another prompt from the next chunk on. False while there is no connection.
  switchTo(prompt) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify({ prompt }));
    return true;
  }

  stop() {
    this.stopped = true;
    this.socket?.close();
  }

  #connect() {
    const url = videoAt(this.id, "/live");
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url, "stream-t1");
    this.socket.addEventListener("open", () => {
      this.wait = 500;
      this.connected(true);
    });
    this.socket.addEventListener("message", (message) => this.take(parsed(message.data)));
    this.socket.addEventListener("close", () => this.#again());
  }

  async #again() {
    if (this.stopped || this.over()) return;
    this.connected(false);
    await new Promise((resolve) => setTimeout(resolve, this.wait));
    this.wait = Math.min(this.wait * 2, 8000);
    if (!this.stopped) this.#connect();
  }
}
