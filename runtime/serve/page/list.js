// The list of videos and the form for a new one.

import { create, isOver, videos } from "./api.js";
import { byId, h, say, show } from "./dom.js";
import { stateInWords } from "./words.js";

const EVERY_MS = 2000;

export function listPage() {
  document.title = "Videos - Stream-T1";
  byId("new").addEventListener("submit", submit);
  const list = new List();
  byId("older").addEventListener("click", () => list.older());
  list.keepFresh();
}

async function submit(event) {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  const fields = new FormData(form);
  const search = { policy: fields.get("policy") };
  for (const name of ["histories", "expansions", "seed"]) {
    if (fields.get(name) !== "") search[name] = Number(fields.get(name));
  }
  say(byId("new-error"), "");
  button.disabled = true;
  try {
    const video = await create(fields.get("prompt"), fields.get("seconds"), search);
    location.assign(new URL(`videos/${encodeURIComponent(video.id)}`, document.baseURI));
  } catch (error) {
    say(byId("new-error"), error.message);
  } finally {
    button.disabled = false;
  }
}

class List {
  constructor() {
    this.rows = new Map(); // id -> {item, state, prompt, progress}
    this.pages = 1;
  }

  async keepFresh() {
    for (;;) {
      await this.refresh();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      while (document.hidden) await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  older() {
    this.pages += 1;
    return this.refresh();
  }

  async refresh() {
    try {
      const found = [];
      let page = { has_more: true };
      for (let i = 0; i < this.pages && page.has_more; i += 1) {
        page = await videos(found.at(-1)?.id);
        found.push(...page.data);
      }
      this.#show(found);
      show(byId("older"), Boolean(page.has_more));
      say(byId("notice"), "");
    } catch (error) {
      say(byId("notice"), error.message);
    }
  }

  // Rows are changed in place: a list that is built anew every two seconds loses focus and selection.
  #show(found) {
    const there = new Set(found.map((video) => video.id));
    for (const [id, { item }] of this.rows) {
      if (!there.has(id)) {
        item.remove();
        this.rows.delete(id);
      }
    }
    const list = byId("jobs");
    found.forEach((video, i) => {
      let row = this.rows.get(video.id);
      if (!row) this.rows.set(video.id, (row = makeRow(video.id)));
      write(row, video);
      if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] ?? null);
    });
    show(byId("none"), !found.length);
  }
}

function makeRow(id) {
  const prompt = h("span", { class: "prompt" });
  const state = h("span", { class: "state" });
  const progress = h("progress", { max: "100", "aria-label": "progress" });
  const address = new URL(`videos/${encodeURIComponent(id)}`, document.baseURI).href;
  const item = h("li", { "data-id": id }, h("a", { href: address }, prompt, progress, state));
  return { item, prompt, state, progress };
}

function write(row, video) {
  say(row.prompt, video.prompt ?? video.id);
  say(row.state, stateInWords(video));
  row.state.dataset.state = video.status;
  row.progress.value = video.progress ?? 0;
  row.progress.classList.toggle("over", isOver(video));
}
