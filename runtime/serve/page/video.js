// One video: how it stands, the film as far as it is settled, the search tree, and what may be done.

import * as api from "./api.js";
import { byId, h, number, say, show } from "./dom.js";
import { Player } from "./player.js";
import { Search, eventsOf } from "./search.js";
import { Panel, Tree } from "./tree.js";
import { seconds, stateInWords } from "./words.js";

const SURE_MS = 5000; // in which the second click has to come

export async function videoPage(id) {
  document.title = "Video - Stream-T1";
  const page = new VideoPage(id);
  await page.refresh();
  page.begin();
}

class VideoPage {
  constructor(id) {
    this.id = id;
    this.video = { id, status: "queued" };
    this.fps = undefined;
    this.search = new Search();
    const panel = new Panel(byId("panel"));
    this.tree = new Tree(byId("tree"), this.search, (index, one) => panel.show(this.search, index, one));
    byId("switch").addEventListener("submit", (event) => this.#switch(event));
    byId("remove").addEventListener("click", () => this.#remove());
    byId("download").href = api.contentAddress(id);
    byId("trace").href = api.traceAddress(id);
  }

  // Nothing more will happen. An interrupted video may go on when the server comes back.
  get over() {
    return api.isOver(this.video) && this.video.error?.code !== "interrupted";
  }

  // Asks how it stands. What happens in between is told by events.
  async refresh() {
    try {
      this.video = await api.video(this.id);
      this.final = this.over;
      say(byId("notice"), "");
    } catch (error) {
      say(byId("notice"), error.status === 404 ? "There is no such video here." : error.message);
    }
    this.#write();
  }

  begin() {
    this.#play();
    this.live = new api.Live(
      this.id,
      (event) => this.#take(event),
      (yes) => this.#connected(yes),
      () => this.#overNow(),
    );
  }

  // When the socket closes for good.
  #overNow() {
    if (this.over) this.#fromTrace();
    return this.over;
  }

  #take(event) {
    const changed = this.search.take(event);
    switch (event.event) {
      case "began":
        this.#began();
        break;
      case "refused":
        say(byId("switch-note"), event.reason);
        break;
      case "switched":
        say(byId("switch-note"), `The new prompt holds from chunk ${event.chunk} on.`);
        break;
      case "done":
        this.#end("completed", event);
        break;
      case "failed":
        this.#end("failed", event, event.resumable ? "interrupted" : "generation_failed");
        break;
      case "cancelled":
        this.#end("failed", { ...event, reason: event.reason ?? "cancelled" }, "cancelled");
        break;
      default:
    }
    if (changed) this.tree.draw();
    this.#writeSoon();
  }

  // Again, for a video that was interrupted: its file goes on where it ended.
  #began() {
    if (this.final) return; // an old story
    this.video.status = "in_progress";
    this.video.error = undefined;
    if (this.player?.ended) {
      this.player.stop();
      this.#play();
    }
  }

  // What the server answered about a finished video holds; its events only tell how it came to that.
  #end(status, event, code) {
    if (this.final) return;
    this.video.status = status;
    if (status === "failed") this.video.error = { code, message: event.reason };
    if (event.degraded) this.video.degraded = event.degraded;
  }

  async #connected(yes) {
    byId("switch").querySelector("button").disabled = !yes;
    if (yes) return say(byId("notice"), "");
    await this.refresh(); // asks for a key when that is what is missing
    if (!api.isOver(this.video)) say(byId("notice"), "The connection to the server broke; connecting again.");
  }

  // A video from before a restart has no events left, but its trace tells the same.
  async #fromTrace() {
    if (this.search.turns.length || this.traced) return;
    this.traced = true;
    try {
      for (const event of eventsOf(await api.trace(this.id))) this.search.take(event);
      this.tree.draw();
      this.#write();
    } catch (error) {
      if (error.status !== 404) say(byId("notice"), error.message);
    }
  }

  async #play() {
    const note = (text) => say(byId("screen-note"), text);
    if (!this.over) note("The video begins when its first chunk is settled.");
    const video = byId("video");
    video.addEventListener("playing", () => note(""));
    video.addEventListener("waiting", () => !this.over && note("Waiting for the next chunk."));
    const over = async () => {
      await this.refresh();
      return api.isOver(this.video);
    };
    this.player = new Player(video, (signal) => api.stream(this.id, signal), over, note);
    const plays = await this.player.play();
    if (plays) return;
    note("This browser cannot play the video while it is made; it comes when it is done.");
    while (!this.over) await new Promise((resolve) => setTimeout(resolve, 1000));
    video.src = api.contentAddress(this.id);
    video.addEventListener("error", () => note("This browser cannot play the video. Download it."));
    note("");
  }

  #switch(event) {
    event.preventDefault();
    const input = byId("switch-prompt");
    const sent = this.live.switchTo(input.value);
    say(byId("switch-note"), sent ? "Asked for." : "There is no connection to the server now; try again soon.");
    if (sent) input.value = "";
  }

  // The server knows no way to stop a video and keep it, so this is asked twice.
  async #remove() {
    const button = byId("remove");
    if (!button.hasAttribute("data-sure")) {
      button.toggleAttribute("data-sure", true);
      say(button, "Really? Its files go, too");
      setTimeout(() => {
        button.toggleAttribute("data-sure", false);
        this.#write();
      }, SURE_MS);
      return;
    }
    button.disabled = true;
    try {
      await api.remove(this.id);
      location.assign(document.baseURI);
    } catch (error) {
      say(byId("notice"), error.message);
      button.disabled = false;
    }
  }

  #writeSoon() {
    this.writing ??= requestAnimationFrame(() => {
      this.writing = undefined;
      this.#write();
    });
  }

  #write() {
    const { video, search } = this;
    say(byId("prompt"), video.prompt ?? this.id);
    say(byId("state"), stateInWords(video));
    byId("state").dataset.state = video.status;
    this.#writeProblems();
    this.#writeProgress();
    show(byId("switch"), !this.over);
    if (!byId("remove").hasAttribute("data-sure")) say(byId("remove"), this.over ? "Delete" : "Cancel and delete");
    show(byId("download"), video.status === "completed");
    writeList(byId("scenes"), [...search.switches].sort(([a], [b]) => a - b), ([chunk, prompt]) => [
      h("b", {}, `from chunk ${chunk}`),
      ` ${prompt}`,
    ]);
    this.#writeFacts();
    this.#writeTimes();
  }

  #writeProblems() {
    const { video } = this;
    const words = video.error?.code === "cancelled" ? undefined : video.error?.message;
    show(byId("problem"), Boolean(words));
    if (words) say(byId("problem"), words);
    show(byId("degraded"), Boolean(video.degraded?.length));
    writeList(byId("degraded"), video.degraded ?? [], (one) => [one]);
  }

  #writeProgress() {
    const { search, video } = this;
    const done = search.settled.filter(Boolean).length;
    const share = video.status === "completed" ? 1 : search.chunks ? done / search.chunks : 0;
    byId("progress").value = share;
    const of = search.chunks ? `${done} of ${search.chunks} chunks settled` : "";
    const drawn = search.turns.length > done && !this.over ? `, ${search.turns.length} drawn` : "";
    const waiting = video.status === "queued" ? "Waiting for its turn." : "";
    say(byId("progress-words"), `${of || waiting}${drawn}${search.frames ? `, ${search.frames} frames` : ""}`);
  }

  #writeFacts() {
    const { video, search } = this;
    const newest = search.turns.at(-1);
    const facts = [
      ["seconds", video.seconds],
      ["size", video.size],
      ["policy", video.settings?.["search.policy"]],
      ["K x M", newest?.histories ? `${newest.histories} x ${newest.expansions}` : undefined],
      ["best fused score", newest ? number(newest.byRank.get(0)?.fused) : undefined],
      ["id", this.id],
    ].filter(([, value]) => value !== undefined && value !== null);
    const list = byId("facts");
    const text = facts.flat().join("\n");
    if (list.dataset.text === text) return;
    list.dataset.text = text;
    list.replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, `${value}`)]));
  }

  #writeTimes() {
    const stages = this.search.stages();
    show(byId("times-none"), !stages.length);
    show(byId("times"), stages.length > 0);
    const most = Math.max(1, ...stages.map((one) => one.total));
    const rows = stages.map(({ stage, last, total }) => {
      const bar = h("i");
      bar.style.width = `${(100 * total) / most}%`;
      const cells = [h("td", {}, stage), h("td", { class: "share" }, bar)];
      return h("tr", {}, ...cells, h("td", {}, seconds(last)), h("td", {}, seconds(total)));
    });
    byId("times").tBodies[0].replaceChildren(...rows);
  }
}

// Makes `list` say what `items` are, when that is news.
function writeList(list, items, children) {
  const text = JSON.stringify(items);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...items.map((one) => h("li", {}, ...children(one))));
}
