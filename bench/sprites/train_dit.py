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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.bench.sprites.corpus import Batch, Corpus
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
from runtime.bench.sprites.world import Caption, training_captions
from runtime.generators.schedule import Schedule, all_sigmas
from runtime.generators.text import word_tokeniser
from runtime.generators.vae import WanVAE

LATENT_SIDE = 8
ON_STEP = 0.8  # share of noise levels drawn from the steps that inference runs


@dataclass(frozen=True)
class Recipe:
    """What a run mixes, and when."""

    steps: int
    rate: float  # peak learning rate
    wandering: float = 0.0  # share of clips that drift away from their caption
    late: int = 1500  # step from which the two losses below take part
    own_history: float = 0.5  # share of those steps whose history is the model's own
    history_noise: float = 0.2  # largest noise on the clean history
    opening_rows: int = 6
    opening_weight: float = 0.5
    batch: int = 4


# Learn the world, then its openings and its wandering ways, then to keep them in bounds.
FIRST = Recipe(steps=2800, rate=2e-3)
SECOND = Recipe(
    steps=1350,
    rate=1e-3,
    wandering=0.8,
    late=0,
    own_history=0.15,
    history_noise=0.1,
    opening_rows=8,
    opening_weight=1.0,
)
THIRD = replace(
    SECOND,
    steps=480,
    rate=7e-4,
    wandering=0.65,
    own_history=0.35,
    opening_rows=10,
)
RECIPES = {"first": FIRST, "second": SECOND, "third": THIRD}


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
    def draw(batch: Batch, rng: random.Random) -> Row:
        rows, count = batch.latents.shape[:2]
        frames, weight = torch.arange(count).repeat(rows, 1), torch.ones(rows, count)
        for row, age in enumerate(batch.ages):
            if age:
                frames[row, CHUNK:] += CHUNK * age
                # Right after the jump only the sink is seen: no telling what comes.
                weight[row, CHUNK : 2 * CHUNK] = 0
        device = batch.ids.device
        slots = tuple(t.to(device) for t in history_slots(rows, count // CHUNK, rng))
        return Row(batch.ids, batch.mask, frames.to(device), weight.to(device), slots)


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


def loss_of(student: Student, batch: Batch, step: int, recipe: Recipe) -> Tensor:
    """Mean flow error over the noisy chunks of latents [B, 3 * N, C, h, w]."""
    latents = batch.latents
    rows, chunks = len(latents), latents.shape[1] // CHUNK
    generator, rng = torch.Generator().manual_seed(step), random.Random(step)
    draw = partial(torch.randn, latents.shape, generator=generator)
    row = Row.draw(batch, rng)
    sigma = draw_sigmas(rows, chunks, generator).to(latents.device).repeat_interleave(CHUNK, 1)
    eps = draw().to(latents.device)
    drift = (
        torch.rand(rows, 1, 1, 1, 1, generator=generator).to(latents.device) * recipe.history_noise
    )
    clean = latents + drift * draw().to(latents.device)
    if step >= recipe.late and rng.random() < recipe.own_history:
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
    recipe: Recipe, corpus: Corpus, vae: WanVAE, out: Path, start: Path | None, device: torch.device
) -> None:
    """Run ``recipe``, resuming from ``out/dit.pt``, else from the weights that ``start`` ended with.

    Writes the averaged weights as two safetensors files.
    """
    opening = Opening(vae, (CHUNK, DIT.channels, LATENT_SIDE, LATENT_SIDE))
    torch.manual_seed(0)
    student = Student().to(device)
    if start is not None:
        student.load_state_dict(
            torch.load(start, weights_only=True, map_location=device)["average"]
        )
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
    for step in range(first, recipe.steps):
        if step % 100 == 0 or step == first:
            corpus.refresh()
        late = step >= recipe.late
        batch = corpus.batch(recipe.batch, step).to(device)
        loss = loss_of(worker, batch, step, recipe)
        loss.backward()
        if late:
            captions = random.Random(-step).sample(training_captions(), recipe.opening_rows)
            begun = opening_loss(worker, opening, corpus, captions, device)
            (recipe.opening_weight * begun).backward()
            log.add(step, opening=begun)
        hand_over_gradients(worker, student)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimiser.step(recipe.rate * min(1.0, (step + 1) / 100) * falling)
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
        if step % 100 == 99 or step == recipe.steps - 1:
            saved = {"model": student.state_dict(), "average": average, "step": step + 1}
            atomic_save({**saved, "optimiser": optimiser.state_dict()}, state)
    export(average, out, recipe.steps)


def opening_loss(
    student: Student,
    opening: Opening,
    corpus: Corpus,
    captions: list[Caption],
    device: torch.device,
) -> Tensor:
    """The loss of first chunks of ``captions`` drawn by the student itself."""
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
    parser.add_argument("--start", type=Path, help="checkpoint of the run before")
    parser.add_argument("--run", choices=RECIPES, default="first")
    parser.add_argument("--steps", type=int, help="fewer or more than the recipe's")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    vae = load_vae(args.vae, device)
    recipe = RECIPES[args.run]
    recipe = replace(recipe, steps=args.steps or recipe.steps)
    corpus = Corpus(args.corpus, recipe.wandering)
    train(recipe, corpus, vae, args.out, args.start, device)


if __name__ == "__main__":
    main()
