"""Train the embedded text encoder and causal DiT the way they will run: clean history, one noisy chunk, four warped steps.

Three losses: flow matching of every chunk under exactly the context it will meet; the same with a history that the model drew
itself, against drift; and first chunks that the model draws itself, pulled to true ones (see ``opening``). Resumable, CPU or GPU.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.bench.sprites.corpus import Corpus
from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.muon import Pair
from runtime.bench.sprites.opening import Opening
from runtime.bench.sprites.student import (
    CHUNK,
    DIT,
    TEXT,
    TEXT_LEN,
    Student,
    history_slots,
    vocabulary,
)
from runtime.bench.sprites.train_log import TrainLog, atomic_save, pick_device
from runtime.bench.sprites.world import training_captions
from runtime.generators.schedule import Schedule, all_sigmas
from runtime.generators.text import word_tokeniser
from runtime.generators.vae import WanVAE

LATENT_SIDE = 8
HISTORY_NOISE = 0.2  # largest noise on the clean history
ON_STEP = 0.8  # share of noise levels drawn from the steps that inference runs
FAR = 0.35  # share of rows whose sink lies far back in time
FAR_CHUNKS = 40
OPENING_AFTER, OPENING_ROWS, OPENING_WEIGHT = 1500, 6, 0.5
OWN_AFTER = 1500  # step from which the history is sometimes the model's own
OWN_HISTORY = 0.5  # share of those steps


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


def train(
    corpus: Corpus,
    vae: WanVAE,
    out: Path,
    steps: int,
    batch: int,
    rate: float,
    device: torch.device,
) -> None:
    """Run to ``steps``, resuming from ``out/dit.pt``; writes the averaged weights as two safetensors files."""
    opening = Opening(vae, (CHUNK, DIT.channels, LATENT_SIDE, LATENT_SIDE))
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
        if step >= OPENING_AFTER:
            first = OPENING_WEIGHT * opening_loss(worker, opening, corpus, step, device)
            first.backward()
            log.add(step, opening=first)
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


def opening_loss(
    student: Student, opening: Opening, corpus: Corpus, step: int, device: torch.device
) -> Tensor:
    """The loss of ``OPENING_ROWS`` first chunks drawn by the student itself."""
    captions = random.Random(-step).sample(training_captions(), OPENING_ROWS)
    ids, mask = (t.to(device) for t in corpus.encode([caption.text for caption in captions]))
    return opening.loss(student.dit, student.context(ids, mask), captions)


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
    parser.add_argument("--vae", type=Path, default=Path("out/train/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    vae = load_vae(args.vae, device)
    train(Corpus(args.corpus), vae, args.out, args.steps, args.batch, args.rate, device)


if __name__ == "__main__":
    main()
