// Plays a video while it is being made: fetches the growing file and hands it to the media element piece by piece.

const HELD_SECONDS = 60; // already seen, kept for stepping back when the browser's buffer is full

// The codec of a fragmented MP4 as media sources want it named, read from the avcC box of its head.
//
// Returns undefined while the head is not whole; `null` for a file that is not H.264.
export function codecOf(bytes) {
  const head = boxAt(bytes, 0, bytes.length, "moov");
  if (!head) return undefined;
  for (let i = head.start; i + 8 <= head.end; i += 1) {
    // The box lies deep in a sample entry whose own header has no end mark; its four letters are found directly.
    if (bytes[i] === 0x61 && bytes[i + 1] === 0x76 && bytes[i + 2] === 0x63 && bytes[i + 3] === 0x43) {
      const named = [5, 6, 7].map((at) => bytes[i + at].toString(16).padStart(2, "0")).join("");
      return `video/mp4; codecs="avc1.${named}"`;
    }
  }
  return null;
}

function boxAt(bytes, from, to, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let start = from; start + 8 <= to; ) {
    const size = view.getUint32(start);
    const kind = String.fromCharCode(...bytes.subarray(start + 4, start + 8));
    if (size < 8 || start + size > to) return undefined;
    if (kind === name) return { start: start + 8, end: start + size };
    start += size;
  }
  return undefined;
}

export class Player {
  // `open(signal)` answers with a Response whose body is the file from its first byte on, `over()` with whether the
  // file is whole; `tell(text)` explains.
  constructor(video, open, over, tell) {
    this.video = video;
    this.open = open;
    this.over = over;
    this.tell = tell;
    this.taken = 0; // bytes handed over; a second connection skips so many
    this.stopped = new AbortController();
    this.ended = false;
  }

  static get possible() {
    return typeof MediaSource === "function";
  }

  // Plays until the file ends. Returns false when this browser cannot: then `src` is the way, once the file is whole.
  async play() {
    if (!Player.possible) return false;
    for (let wait = 500; !this.stopped.signal.aborted; wait = Math.min(wait * 2, 8000)) {
      try {
        const playable = await this.#connection();
        if (!playable || this.ended) return playable;
      } catch (error) {
        if (this.stopped.signal.aborted) return true;
        // The server was reached and will not give more of it: asking again would not help.
        if (error.status >= 400 && error.status < 500) {
          this.tell(error.message);
          return true;
        }
        if (error.fatal) return false;
      }
      this.tell("The connection broke; trying again.");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    return true;
  }

  stop() {
    this.stopped.abort();
    if (this.address) URL.revokeObjectURL(this.address);
  }

  // One connection: false when the codec is not known here; sets `ended` when the file was whole.
  async #connection() {
    const response = await this.open(this.stopped.signal);
    const reader = response.body.getReader();
    let skip = this.taken;
    let head = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      let piece = value;
      if (skip) {
        const passed = Math.min(skip, piece.length);
        skip -= passed;
        piece = piece.subarray(passed);
      }
      if (!piece.length) continue;
      if (!this.buffer) {
        head = joined(head, piece);
        const codec = codecOf(head);
        if (codec === undefined) continue;
        if (codec === null || !MediaSource.isTypeSupported(codec)) {
          await reader.cancel();
          return false;
        }
        await this.#begin(codec);
        piece = head;
      }
      await this.#append(piece);
      this.taken += piece.length;
    }
    // A server that is stopped, or a proxy, may end a response as if that were all.
    if (!(await this.over())) throw new Error("broken");
    this.ended = true;
    if (this.source?.readyState === "open") this.source.endOfStream();
    return true;
  }

  async #begin(codec) {
    this.source = new MediaSource();
    this.address = URL.createObjectURL(this.source);
    this.video.src = this.address;
    await new Promise((resolve) => this.source.addEventListener("sourceopen", resolve, { once: true }));
    this.buffer = this.source.addSourceBuffer(codec);
    this.tell("");
    // Muted, so that browsers let it begin by itself; where they do not, the play button is there.
    this.video.play().catch(() => {});
  }

  async #append(piece) {
    for (;;) {
      try {
        this.buffer.appendBuffer(piece);
        return await this.#settled();
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw fatal(error);
        await this.#makeRoom();
      }
    }
  }

  // The browser holds only so much: what was seen goes, and what comes waits until enough was seen.
  async #makeRoom() {
    const ranges = this.buffer.buffered;
    const until = this.video.currentTime - HELD_SECONDS;
    if (ranges.length && ranges.start(0) < until) {
      this.buffer.remove(0, until);
      await this.#settled();
    } else {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (this.stopped.signal.aborted) throw new Error("stopped");
    }
  }

  #settled() {
    return new Promise((resolve, reject) => {
      const over = (event) => {
        this.buffer.removeEventListener("updateend", over);
        this.buffer.removeEventListener("error", over);
        if (event.type === "error") reject(fatal(new Error("This browser cannot decode the video.")));
        else resolve();
      };
      this.buffer.addEventListener("updateend", over);
      this.buffer.addEventListener("error", over);
    });
  }
}

function fatal(error) {
  error.fatal = true;
  return error;
}

function joined(first, second) {
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}
