"""Train the embedded text encoder and causal DiT the way they will run: clean history, one noisy chunk, four warped steps.

A training row is a whole clip of N chunks laid out twice, [clean 0 .. N-1 | noisy 0 .. N-1]. A noisy chunk sees itself and
the clean sink, the clean window before it and, now and then, earlier chunks that a search would have appended as sinks; a
clean chunk sees the same history and itself. So one forward trains every chunk under exactly the context it will meet.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.bench.sprites.muon import Pair
from runtime.bench.sprites.train_log import TrainLog, atomic_save, pick_device
from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEEDS,
)
from runtime.generators.schedule import Schedule, all_sigmas
from runtime.generators.text import TextConfig, build_encoder, word_tokeniser
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.generators.wan_layers import dense_attention

CHUNK, WINDOW = 3, 2  # latent frames a chunk, chunks of history in the window
TEXT_LEN = 16
DIT = DiTConfig(
    dim=192,
    heads=6,
    layers=6,
    ffn_dim=768,
    freq_dim=128,
    text_dim=64,
    text_len=TEXT_LEN,
    channels=12,
)
TEXT = TextConfig(vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
HISTORY_NOISE = 0.2  # largest noise on the clean history
ON_STEP = 0.8  # share of noise levels drawn from the steps that inference runs
EXTRA_SINK = 0.2  # chance that an old chunk is visible as a second sink
SLOTS = 2 + WINDOW  # earlier chunks that a chunk can see
FAR = 0.35  # share of rows whose sink lies far back in time
FAR_CHUNKS = 40
OWN_AFTER = 1500  # step from which the history is sometimes the model's own
OWN_HISTORY = 0.5  # share of those steps


def vocabulary() -> list[str]:
    """Every word of the world's captions, sorted, plus a few that people add."""
    phrases = [
        *SHAPES,
        *COLOURS,
        *BACKGROUNDS,
        *SPEEDS,
        *MOTIONS,
        "a",
        "an",
        "the",
        "on",
        "background",
    ]
    return sorted({word for phrase in phrases for word in phrase.split()})


def history_slots(rows: int, chunks: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Which earlier chunks each chunk sees: ids and validity, [rows, chunks, SLOTS].

    Slot 0 is the sink (chunk 0), slot 1 now and then an old chunk that a search would have appended as a sink, the rest
    the window. Invalid slots point at chunk 0 and are masked.
    """
    ids = torch.zeros(rows, chunks, SLOTS, dtype=torch.long)
    valid = torch.zeros(rows, chunks, SLOTS, dtype=torch.bool)
    for n in range(1, chunks):
        valid[:, n, 0] = True
        for back in range(1, WINDOW + 1):
            if n - back >= 1:
                ids[:, n, 1 + back], valid[:, n, 1 + back] = n - back, True
        for row in range(rows):
            if n - WINDOW - 1 >= 1 and rng.random() < EXTRA_SINK:
                ids[row, n, 1], valid[row, n, 1] = rng.randint(1, n - WINDOW - 1), True
    return ids, valid


class ForcedAttention:
    """Self attention over [clean | noisy]: every chunk sees itself and its history's clean chunks, nothing else.

    The callable that ``WanDiT.forward`` takes. Keys are gathered per chunk, so the cost is that of inference.
    """

    def __init__(self, ids: Tensor, valid: Tensor, tokens: int) -> None:
        self.ids, self.tokens = ids, tokens  # tokens of a chunk
        own = valid.new_ones(*valid.shape[:2], 1)
        mask = torch.cat([valid, own], dim=-1).repeat_interleave(
            tokens, -1
        )  # [B, N, (SLOTS + 1) * t]
        self.mask = torch.cat([mask, mask], dim=1).flatten(0, 1)[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, chunks, _ = self.ids.shape
        q, k, v = (t.unflatten(1, (2 * chunks, self.tokens)) for t in (q, k, v))  # [B, 2N, t, H, D]
        keys, values = (self._with_history(t) for t in (k, v))
        out = dense_attention(q.flatten(0, 1), keys, values, self.mask)
        return out.unflatten(0, (rows, 2 * chunks)).flatten(1, 2)

    def _with_history(self, x: Tensor) -> Tensor:
        """[B, 2N, t, H, D] -> [B * 2N, (SLOTS + 1) * t, H, D]: the clean chunks that each chunk sees, then itself."""
        rows, chunks, slots = self.ids.shape
        row = torch.arange(rows, device=x.device)[:, None, None]
        past = x[row, self.ids].flatten(2, 3)  # [B, N, SLOTS * t, H, D]
        return torch.cat([torch.cat([past, past], dim=1), x], dim=2).flatten(0, 1)


class Student(nn.Module):
    """Text encoder and DiT trained together; the state dict splits by prefix into the two shipped files."""

    def __init__(self) -> None:
        super().__init__()
        self.text = build_encoder(TEXT)
        self.dit = WanDiT(DIT)
        nn.init.zeros_(self.dit.head.head.weight)
        for block in self.dit.blocks:
            nn.init.zeros_(block.self_attn.o.weight)
            nn.init.zeros_(block.cross_attn.o.weight)
        with torch.no_grad():
            for block in self.dit.blocks:  # residual branches open at 1, scales and shifts at 0
                block.modulation.zero_()
                block.modulation[:, [2, 5]] = 1.0
            self.dit.head.modulation.zero_()
            self.dit.time_projection[1].weight.mul_(0.1)

    def forward(
        self, ids: Tensor, mask: Tensor, x: Tensor, timestep: Tensor, frames: Tensor, slots: tuple
    ):
        embeds = self.text(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        context = self.dit.text_context(embeds)
        height, width = x.shape[-2:]
        attend = ForcedAttention(*slots, CHUNK * height * width // 4)
        return self.dit(x, timestep, context, self.dit.rope(frames, height, width), attend)


def draw_sigmas(rows: int, chunks: int, generator: torch.Generator) -> Tensor:
    """Noise level per chunk [rows, chunks]: mostly the levels that inference runs, else shifted-uniform."""
    steps = torch.tensor(Schedule.warped().sigmas)
    every = all_sigmas(5.0)
    on = steps[torch.randint(len(steps), (rows, chunks), generator=generator)]
    off = every[torch.randint(len(every), (rows, chunks), generator=generator)]
    return torch.where(torch.rand(rows, chunks, generator=generator) < ON_STEP, on, off)


@dataclass(frozen=True)
class Row:
    """What one training forward is asked: a batch of clips, where they lie in time and what each chunk sees."""

    ids: Tensor  # [B, TEXT_LEN]
    mask: Tensor
    frames: Tensor  # [B, F] absolute latent frames
    weight: Tensor  # [B, F] share in the loss
    slots: tuple[Tensor, Tensor]

    @staticmethod
    def draw(ids: Tensor, mask: Tensor, chunks: int, rng: random.Random) -> Row:
        rows = len(ids)
        frames = torch.arange(chunks * CHUNK).repeat(rows, 1)
        weight = torch.ones(rows, chunks * CHUNK)
        for row in range(rows):
            if rng.random() < FAR:
                frames[row, CHUNK:] += CHUNK * rng.randint(1, FAR_CHUNKS)
                # Right after the jump only the sink is seen: no telling what comes.
                weight[row, CHUNK : 2 * CHUNK] = 0
        slots = tuple(t.to(ids.device) for t in history_slots(rows, chunks, rng))
        return Row(ids, mask, frames.to(ids.device), weight.to(ids.device), slots)


def predict(
    student: Student, row: Row, clean: Tensor, latents: Tensor, eps: Tensor, sigma: Tensor
) -> Tensor:
    """Flow of every frame of ``latents`` noised to ``sigma`` [B, F], given the clean history; float32."""
    level = sigma[:, :, None, None, None]
    x = torch.cat([clean, (1 - level) * latents + level * eps], 1)
    timestep = torch.cat([torch.zeros_like(sigma), 1000 * sigma], dim=1)
    frames = torch.cat([row.frames, row.frames], 1)
    dtype = student.dit.patch_embedding.weight.dtype
    flow = student(row.ids, row.mask, x.to(dtype), timestep, frames, row.slots)
    return flow[:, latents.shape[1] :].float()


def loss_of(student: Student, latents: Tensor, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    """Mean flow error over the noisy chunks. latents [B, 3 * N, C, h, w] on the training device."""
    rows, chunks = len(latents), latents.shape[1] // CHUNK
    generator, rng = torch.Generator().manual_seed(step), random.Random(step)
    draw = partial(torch.randn, latents.shape, generator=generator)
    row = Row.draw(ids, mask, chunks, rng)
    sigma = draw_sigmas(rows, chunks, generator).to(latents.device).repeat_interleave(CHUNK, 1)
    eps = draw().to(latents.device)
    drift = torch.rand(rows, 1, 1, 1, 1, generator=generator).to(latents.device) * HISTORY_NOISE
    clean = latents + drift * draw().to(latents.device)
    if step >= OWN_AFTER and rng.random() < OWN_HISTORY:
        clean = own_history(student, row, clean, latents, draw().to(latents.device))
    flow = predict(student, row, clean, latents, eps, sigma)
    error = (flow - (eps - latents)).square().mean((2, 3, 4))
    return (error * row.weight).sum() / row.weight.sum()


@torch.no_grad()
def own_history(student: Student, row: Row, clean: Tensor, latents: Tensor, eps: Tensor) -> Tensor:
    """The clean history as the model itself would have drawn it from the last step, in half of the rows: what it will
    have to go on from when nobody hands it the truth. Chunk 0 stays: it has no history to be predicted from."""
    sigma = torch.full(latents.shape[:2], Schedule.warped().sigmas[-1], device=latents.device)
    level = sigma[:, :, None, None, None]
    flow = predict(student, row, clean, latents, eps, sigma)
    drawn = (1 - level) * latents + level * eps - level * flow
    own = torch.cat([clean[:, :CHUNK], drawn[:, CHUNK:]], 1)
    half = torch.arange(len(latents), device=latents.device) % 2 == 0
    return torch.where(half[:, None, None, None, None], own, clean)


class Corpus:
    """Latents and captions made ahead by ``encode_clips``; shards may still be arriving while training runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokeniser = folder, word_tokeniser(vocabulary())
        self.latents, self.captions = torch.empty(0), []
        self.shards = 0

    def refresh(self) -> None:
        paths = sorted(self.folder.glob("shard_*.pt"))
        if len(paths) == self.shards:
            return
        parts = [torch.load(path, weights_only=True) for path in paths]
        self.latents = torch.cat([part["latents"] for part in parts])
        self.captions = [caption for part in parts for caption in part["captions"]]
        self.shards = len(paths)

    def batch(self, size: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, F, C, h, w] float32, ids and mask [B, TEXT_LEN]; some captions lose their speed word."""
        rng = random.Random(step)
        rows = [rng.randrange(len(self.captions)) for _ in range(size)]
        texts = [self.captions[row] for row in rows]
        for speed in SPEEDS:
            texts = [t.replace(f" {speed}", "") if rng.random() < 0.03 else t for t in texts]
        ids, mask = self.encode(texts)
        return self.latents[rows].float(), ids, mask

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        coded = [self.tokeniser.encode(text).ids for text in texts]
        ids = torch.tensor([c + [0] * (TEXT_LEN - len(c)) for c in coded])
        return ids, (torch.arange(TEXT_LEN) < torch.tensor([len(c) for c in coded])[:, None]).long()


def train(
    corpus: Corpus, out: Path, steps: int, batch: int, rate: float, device: torch.device
) -> None:
    """Run to ``steps``, resuming from ``out/dit.pt``; writes the averaged weights as two safetensors files."""
    torch.manual_seed(0)
    student = Student().to(device)
    average = {k: v.detach().clone() for k, v in student.state_dict().items()}
    worker = copy.deepcopy(
        student
    ).bfloat16()  # runs forward and backward; the float32 student takes the steps
    optimiser = Pair(
        student,
        edges=("patch_embedding", "head", "shared", "modulation", "relative_attention_bias"),
    )
    log, state, first = TrainLog(out / "dit.log"), out / "dit.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        student.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, first = saved["average"], saved["step"]
        worker.load_state_dict(saved["model"])
    began = time.monotonic()
    for step in range(first, steps):
        if step % 100 == 0 or step == first:
            corpus.refresh()
        latents, ids, mask = (t.to(device) for t in corpus.batch(batch, step))
        loss = loss_of(worker, latents, ids, mask, step)
        loss.backward()
        hand_over_gradients(worker, student)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.step(rate * min(1.0, (step + 1) / 100) * falling)
        with torch.no_grad():
            for fast, exact in zip(worker.parameters(), student.parameters(), strict=True):
                fast.copy_(exact)
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in student.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        log.add(step, loss=loss)
        if step % 20 == 19:
            log.write(step, seconds=time.monotonic() - began)
        if step % 100 == 99 or step == steps - 1:
            saved = {"model": student.state_dict(), "average": average, "step": step + 1}
            atomic_save({**saved, "optimiser": optimiser.state_dict()}, state)
    export(average, out, steps)


def hand_over_gradients(worker: nn.Module, student: nn.Module) -> None:
    """Move the worker's bfloat16 gradients to the student's float32 parameters."""
    for fast, exact in zip(worker.parameters(), student.parameters(), strict=True):
        exact.grad = None if fast.grad is None else fast.grad.float()
        fast.grad = None


def export(average: dict[str, Tensor], out: Path, steps: int) -> None:
    """Split averaged weights into ``dit.safetensors`` and ``text.safetensors`` with their configurations."""
    log = TrainLog(out / "dit.log")
    for part, config in (("dit", asdict(DIT)), ("text", asdict(TEXT) | {"text_len": TEXT_LEN})):
        weights = {
            k.removeprefix(part + "."): v.cpu()
            for k, v in average.items()
            if k.startswith(part + ".")
        }
        weights.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
        log.finish(out / f"{part}.safetensors", weights, config, steps)
    word_tokeniser(vocabulary()).save(str(out / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("out/train/corpus"))
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    train(
        Corpus(args.corpus), args.out, args.steps, args.batch, args.rate, pick_device(args.device)
    )


if __name__ == "__main__":
    main()
