// Talks to the server that this page came from, and to nobody else. The only file that knows routes and field names.

import { byId, show } from "./dom.js";

const KEY = "stream-t1-key"; // in sessionStorage: gone with the tab

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

export const key = () => sessionStorage.getItem(KEY);

// Like `fetch`, with the key; asks for one when the server does, and throws ApiError for what is not a success.
async function call(url, options = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    const used = key();
    if (used !== null) headers.set("Authorization", `Bearer ${used}`);
    let response;
    try {
      response = await fetch(url, { ...options, headers, credentials: "same-origin", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server cannot be reached.");
    }
    if (response.status === 401) await ask(used);
    else if (response.ok) return response;
    else throw new ApiError(response.status, await sentence(response));
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

// Asks for the key, until one is given that differs from the `wrong` one.
function ask(wrong) {
  if (wrong !== null && key() !== wrong) return Promise.resolve(); // another call has asked meanwhile
  asking ??= new Promise((resolve) => {
    const [dialog, input] = [byId("key"), byId("key-value")];
    show(byId("key-wrong"), wrong !== null);
    input.value = "";
    const given = () => {
      if (!input.value) return dialog.showModal(); // Escape: there is nothing to see without a key
      dialog.removeEventListener("close", given);
      sessionStorage.setItem(KEY, input.value);
      asking = undefined;
      resolve();
    };
    dialog.addEventListener("close", given);
    dialog.showModal();
  });
  return asking;
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
export const remove = (id) => call(videoAt(id), { method: "DELETE" });
export const content = (id, signal) => call(videoAt(id, "/content"), { signal });
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
    // A browser cannot put a header on a socket; the key travels as a protocol name, not in the logged address.
    const used = key();
    const protocols = used === null ? ["stream-t1"] : ["stream-t1", `key.${base64url(used)}`];
    this.socket = new WebSocket(url, protocols);
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

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
