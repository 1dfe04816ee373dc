// Draws a search as it grows: a column per chunk, a picture per candidate, a line from parent to child.
//
// Only the columns near the view exist, so an hour of video costs what a screenful costs.

import { h, number, s, say } from "./dom.js";
import { ALIVE, ENDED, PRUNED, SETTLED } from "./search.js";

const MOST = 24; // candidates of a chunk that are drawn; survivors first, then the best of the others
const HEAD = 38; // pixels above the pictures: the chunk's number, and whether its prompt is new
// Only pictures that came with the event: nothing is fetched from anywhere.
const PICTURE = /^data:image\/(jpeg|png|gif);base64,/;
const SPARE = 2; // columns drawn beyond either edge of the view
const WORDS = {
  [PRUNED]: "pruned",
  [ENDED]: "kept, its line ended later",
  [ALIVE]: "kept, still a candidate for the video",
  [SETTLED]: "in the video",
};

export const fateInWords = (fate) => WORDS[fate];

export class Tree {
  // `pick` is called with (index, candidate) for what is pointed at or focused, `undefined` for nothing.
  constructor(frame, search, pick) {
    this.frame = frame; // scrolls
    this.search = search;
    this.pick = pick;
    this.canvas = h("div", { class: "canvas" });
    this.columns = new Map(); // chunk -> {turn, element, nodes, lines}
    this.chosen = undefined; // {index, candidate} that was clicked or focused last
    this.pending = false;
    this.most = 0; // candidates drawn in the fullest column
    frame.append(this.canvas);
    frame.addEventListener("scroll", () => this.draw(), { passive: true });
    frame.addEventListener("keydown", (event) => this.#key(event));
    frame.addEventListener("pointerleave", () => this.#tell());
    new ResizeObserver(() => this.draw()).observe(frame);
  }

  // Draws soon; calls in between are one drawing.
  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.#draw();
    });
  }

  #draw() {
    const turns = this.search.turns;
    const most = Math.max(1, ...turns.map((turn) => (turn ? Math.min(turn.candidates.length, MOST) : 0)));
    if (most !== this.most) this.#resize(most);
    const wide = turns.length * this.pitch;
    const following = this.frame.scrollLeft + this.frame.clientWidth >= this.canvas.offsetWidth - this.pitch;
    this.canvas.style.width = `${wide}px`;
    if (following) this.frame.scrollLeft = wide;
    const first = Math.max(0, Math.floor(this.frame.scrollLeft / this.pitch) - SPARE);
    const beyond = Math.ceil((this.frame.scrollLeft + this.frame.clientWidth) / this.pitch) + SPARE;
    const focused = this.canvas.contains(document.activeElement);
    for (const [index, column] of this.columns) {
      if (index < first || index >= beyond || turns[index] !== column.turn) {
        // A column that holds the focus stays: taking it away would throw a keyboard user out of the tree.
        const kept = turns[index] === column.turn && column.element.contains(document.activeElement);
        if (!kept) this.#drop(index);
      }
    }
    for (let index = first; index < Math.min(beyond, turns.length); index += 1) {
      if (turns[index] && !this.columns.has(index)) this.#column(turns[index]);
    }
    this.#refresh();
    if (focused && !this.canvas.contains(document.activeElement)) this.#node()?.focus();
  }

  // Smaller pictures where there are many.
  #resize(most) {
    this.most = most;
    this.side = most <= 6 ? 64 : most <= 12 ? 44 : 32;
    this.pitch = this.side + 52;
    this.step = this.side + 20;
    this.canvas.style.height = `${HEAD + most * this.step + 16}px`;
    this.canvas.style.setProperty("--side", `${this.side}px`);
    for (const index of [...this.columns.keys()]) this.#drop(index);
  }

  #drop(index) {
    this.columns.get(index).element.remove();
    this.columns.delete(index);
  }

  // Candidates of a chunk that are drawn, in row order.
  #shown(turn) {
    if (turn.candidates.length <= MOST) return turn.candidates;
    const worth = (one) => (one.rank === null ? (one.fused ?? -Infinity) : Infinity);
    const best = [...turn.candidates].sort((a, b) => worth(b) - worth(a)).slice(0, MOST);
    return best.sort((a, b) => a.row - b.row);
  }

  // Middle of the i-th of n pictures, from the top of the canvas.
  #middle(i, n) {
    return HEAD + ((this.most - n) / 2 + i) * this.step + this.side / 2;
  }

  #column(turn) {
    const shown = this.#shown(turn);
    const element = h("div", { class: "column", role: "group", "aria-label": `chunk ${turn.index}` });
    element.style.left = `${turn.index * this.pitch + 12}px`;
    const scene = this.search.switches.get(turn.index);
    element.append(h("span", { class: "chunk" }, `${turn.index}`));
    if (scene !== undefined) {
      element.append(h("span", { class: "scene", title: `the prompt from here on: ${scene}` }, "new prompt"));
    }
    const lines = this.#lines(turn, shown);
    element.append(s("svg", { class: "lines", "aria-hidden": "true" }, ...lines.values()));
    const nodes = new Map();
    shown.forEach((candidate, i) => {
      const node = this.#picture(turn.index, candidate);
      node.style.top = `${this.#middle(i, shown.length) - this.side / 2}px`;
      nodes.set(candidate, node);
      element.append(node);
    });
    const hidden = turn.candidates.length - shown.length;
    if (hidden) element.append(h("span", { class: "more" }, `+ ${hidden} pruned`));
    this.canvas.append(element);
    this.columns.set(turn.index, { turn, element, nodes, lines });
  }

  // Candidate -> the line that leads to it, in the column's own coordinates.
  #lines(turn, shown) {
    const lines = new Map();
    const before = this.search.turns[turn.index - 1];
    if (!before) return lines;
    const parents = this.#shown(before);
    shown.forEach((candidate, i) => {
      const at = parents.indexOf(this.search.parentOf(turn.index, candidate));
      if (at < 0) return;
      const [from, to] = [this.#middle(at, parents.length), this.#middle(i, shown.length)];
      const [left, right] = [this.side - this.pitch, 0];
      const half = (left + right) / 2;
      lines.set(candidate, s("path", { d: `M${left},${from}C${half},${from} ${half},${to} ${right},${to}` }));
    });
    return lines;
  }

  #picture(index, candidate) {
    const picture = h("img", { alt: "", width: this.side, height: this.side, draggable: "false" });
    if (PICTURE.test(candidate.thumbnail ?? "")) picture.src = candidate.thumbnail;
    const choose = () => {
      this.chosen = { index, candidate };
      this.#tell(this.chosen);
      this.#refresh();
    };
    return h(
      "button",
      {
        class: "node",
        type: "button",
        tabindex: "-1",
        "data-index": index,
        "data-row": candidate.row,
        click: choose,
        focus: choose,
        pointerenter: () => this.#tell({ index, candidate }),
      },
      picture,
      h("span", { class: "score" }, candidate.fused === null ? "none" : number(candidate.fused, 2)),
    );
  }

  // Fates may change long after a column was drawn.
  #refresh() {
    for (const [index, { nodes, lines }] of this.columns) {
      for (const [candidate, node] of nodes) {
        const fate = this.search.fateOf(candidate);
        if (node.dataset.fate !== fate) {
          node.dataset.fate = fate;
          node.setAttribute("aria-label", labelOf(index, candidate, fate));
          lines.get(candidate)?.setAttribute("data-fate", fate);
        }
        const chosen = this.chosen?.candidate === candidate;
        if (node.hasAttribute("data-chosen") !== chosen) node.toggleAttribute("data-chosen", chosen);
        if (node.tabIndex !== -1) node.tabIndex = -1;
      }
    }
    const entry = this.#node() ?? this.#entry();
    if (entry) entry.tabIndex = 0;
  }

  // The element of what is chosen, when it is drawn.
  #node() {
    return this.columns.get(this.chosen?.index)?.nodes.get(this.chosen?.candidate);
  }

  // Where the Tab key enters: the best candidate of the newest column that is drawn.
  #entry() {
    const newest = this.columns.get(Math.max(...this.columns.keys()));
    return newest?.nodes.get(newest.turn.byRank.get(0)) ?? newest?.nodes.values().next().value;
  }

  #tell(seen = this.chosen) {
    this.pick(seen?.index, seen?.candidate);
  }

  #key(event) {
    const at = event.target.closest?.(".node");
    if (!at || event.ctrlKey || event.altKey || event.metaKey) return;
    const index = Number(at.dataset.index);
    const turn = this.search.turns[index];
    const shown = this.#shown(turn);
    const i = shown.findIndex((one) => one.row === Number(at.dataset.row));
    const moves = {
      ArrowUp: () => [index, shown[i - 1]],
      ArrowDown: () => [index, shown[i + 1]],
      ArrowLeft: () => [index - 1, this.search.parentOf(index, shown[i])],
      ArrowRight: () => [index + 1, best(this.search.childrenOf(index, shown[i]), this.search)],
      Home: () => [0, this.search.turns[0]?.byRank.get(0)],
      End: () => [this.search.turns.length - 1, this.search.turns.at(-1)?.byRank.get(0)],
    };
    const [next, candidate] = moves[event.key]?.() ?? [];
    if (moves[event.key]) event.preventDefault();
    if (candidate) this.goTo(next, candidate);
  }

  // Brings a candidate into view and gives it the focus.
  goTo(index, candidate) {
    const left = index * this.pitch;
    const { scrollLeft, clientWidth } = this.frame;
    if (left < scrollLeft + this.pitch) this.frame.scrollLeft = left - this.pitch;
    else if (left + 2 * this.pitch > scrollLeft + clientWidth) {
      this.frame.scrollLeft = left + 2 * this.pitch - clientWidth;
    }
    this.chosen = { index, candidate };
    this.#draw();
    this.#node()?.focus();
  }
}

// Of a candidate's children the one that came furthest.
function best(children, search) {
  const order = [PRUNED, ENDED, ALIVE, SETTLED];
  return children.sort((a, b) => order.indexOf(search.fateOf(b)) - order.indexOf(search.fateOf(a)))[0];
}

function labelOf(index, candidate, fate) {
  return `chunk ${index}, candidate ${candidate.row}, fused score ${number(candidate.fused, 2)}, ${WORDS[fate]}`;
}

const ROUTES = {
  append: "kept as a new sink",
  ema: "merged into the newest sink",
  discard: "dropped",
};

// Writes all that is known of a candidate into a side panel.
export class Panel {
  constructor(panel) {
    this.hint = panel.querySelector("[data-hint]");
    this.body = panel.querySelector("[data-body]");
    this.picture = panel.querySelector("img");
    this.fields = new Map([...panel.querySelectorAll("[data-field]")].map((one) => [one.dataset.field, one]));
  }

  show(search, index, candidate) {
    this.hint.hidden = candidate !== undefined;
    this.body.hidden = candidate === undefined;
    if (!candidate) return;
    const fate = search.fateOf(candidate);
    const parent = search.parentOf(index, candidate);
    const values = {
      name: `Chunk ${index}, candidate ${candidate.row}`,
      fate: WORDS[fate],
      short: number(candidate.short),
      long: number(candidate.long),
      fused: number(candidate.fused),
      gain: number(candidate.quality_gain),
      drop: number(candidate.long_drop),
      route: ROUTES[candidate.route] ?? candidate.route,
      parent: parent ? `candidate ${parent.row} of chunk ${index - 1}` : "none",
      rank: candidate.rank === null ? "none" : `${candidate.rank}`,
      seed: `${candidate.seed}`,
    };
    for (const [name, text] of Object.entries(values)) say(this.fields.get(name), text);
    this.fields.get("fate").dataset.fate = fate;
    this.picture.toggleAttribute("hidden", !candidate.thumbnail);
    if (PICTURE.test(candidate.thumbnail ?? "")) this.picture.src = candidate.thumbnail;
  }
}
