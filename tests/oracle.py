"""Stream-T1 the slow way, from its description alone: lists and copies, one candidate at a time, no blocks, no batch.

Keys are kept as if they had no place in time and are turned to one where they are looked at; every clip is decoded again
from the latents it consists of. Only the network, the draws and the rewards are shared with what is tested.

Legend: S tokens of a chunk, H heads, D head dim, T frames, C latent channels, h x w latent size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch import Tensor

CHUNK = 3


@dataclass(frozen=True)
class Rules:
    """The hyper-parameters, under the description's own letters."""

    N: int
    K: int = 2
    M: int = 2
    L: int = 12
    s: int = 3
    Smax: int = 15
    alpha: float = 0.999
    quality: float = 0.0
    transition: float = 0.2
    beta: float = -0.1
    slerp: bool = False
    tau: float = 0.4
    W: int = 10
    seed: int = 42
    released: bool = False
    policy: str = "stream-t1"
    propagation: bool = True
    sinking: bool = True
    pruning: bool = True
    horizon: int = 40
    relative: bool = False

    @property
    def competes(self) -> bool:
        return self.policy == "beam" or (self.policy == "stream-t1" and self.pruning)

    @property
    def judges(self) -> bool:
        return self.policy in ("beam", "stream-t1")

    @property
    def start(self) -> int:
        """Candidates of chunk 0."""
        alone = self.policy == "single" or (self.policy == "stream-t1" and not self.pruning)
        return 1 if alone else self.K * self.M


@dataclass
class Entry:
    """What a history remembers of one chunk. Keys are turned back to frame 0 on the temporal axis."""

    start: int
    keys: list[Tensor]  # per layer [S, H, D]
    values: list[Tensor]
    route: str


@dataclass
class History:
    seed: int = 0
    noise: Tensor | None = None
    latents: list[Tensor] = field(default_factory=list)
    shorts: list[float] = field(default_factory=list)
    long: float = 0.0
    sinks: list[Entry] = field(default_factory=list)
    window: list[Entry] = field(default_factory=list)
    names: list[tuple[int, int]] = field(default_factory=list)  # (chunk, row) of all it consists of


@dataclass
class Drawn:
    """A candidate as it is compared."""

    rank: int
    seed: int
    noise: Tensor
    x0: Tensor
    short: float = math.nan  # until it is judged
    long: float = math.nan
    score: float = math.nan
    route: str = "discard"


@dataclass
class World:
    """What oracle and engine share: the network, its prompt, its noise levels, draws and rewards."""

    dit: torch.nn.Module
    text: object
    timesteps: Sequence[float]
    sigmas: Sequence[float]
    draw: Callable[[int, int], Tensor]  # seed, draw -> [3, C, h, w]
    short: Callable[[Tensor, int], float]
    long: Callable[[Tensor, int], float]


def turn(keys: Tensor, frames: Sequence[int], sign: int) -> Tensor:
    """Keys [S, H, D] moved to (or back from) the given latent frames, one per equal share of the tokens."""
    pairs = keys.shape[-1] // 2
    temporal = pairs - 2 * (pairs // 3)
    rates = torch.tensor(
        [10000 ** (-j / temporal) for j in range(temporal)] + [0.0] * (pairs - temporal),
        dtype=torch.float64,
    )
    each = keys.shape[0] // len(frames)
    places = torch.tensor([f for f in frames for _ in range(each)], dtype=torch.float64)
    angles = sign * places[:, None, None] * rates
    plane = torch.view_as_complex(keys.unflatten(-1, (pairs, 2)).contiguous())
    return torch.view_as_real(plane * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def span(start: int) -> list[int]:
    return [start + i for i in range(CHUNK)]


def places(rules: Rules, history: History, n: int) -> list[int]:
    """Where each remembered chunk is looked at: where it was born, or sinks right before the window."""
    born = [entry.start for entry in history.sinks + history.window]
    if not rules.relative:
        return born
    after = history.window[0].start if history.window else CHUNK * n
    count = len(history.sinks)
    return [after - CHUNK * (count - i) for i in range(count)] + born[count:]


def forward(
    world: World, rules: Rules, history: History, x: Tensor, timestep: float, n: int
) -> tuple[Tensor, Entry]:
    """Flow of one candidate, and what the chunk would be remembered by."""
    own = Entry(CHUNK * n, [], [], "discard")

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own.keys.append(turn(k[0], span(CHUNK * n), -1))
        own.values.append(v[0])
        entries = history.sinks + history.window + [own]
        at = [*places(rules, history, n), CHUNK * n]
        keys = torch.cat(
            [turn(e.keys[layer], span(p), 1) for e, p in zip(entries, at, strict=True)]
        )
        values = torch.cat([e.values[layer] for e in entries])
        logits = torch.einsum("shd,thd->hst", q[0], keys) / math.sqrt(q.shape[-1])
        return torch.einsum("hst,thd->shd", logits.softmax(-1), values)[None]

    frames = torch.tensor([span(CHUNK * n)])
    times = torch.full((1, CHUNK), timestep, dtype=torch.float64)
    flow = world.dit(x[None], times, world.text, world.dit.rope(frames, *x.shape[-2:]), attend)
    return flow[0], own


def denoise(world: World, rules: Rules, history: History, drawn: Drawn, n: int) -> Tensor:
    x = drawn.noise
    for number, (timestep, sigma) in enumerate(zip(world.timesteps, world.sigmas, strict=True)):
        if number:
            x = (1 - sigma) * x + sigma * world.draw(drawn.seed, number)
        x = x - sigma * forward(world, rules, history, x, timestep, n)[0]
    return x


def mix(rules: Rules, before: Tensor, fresh: Tensor) -> Tensor:
    beta, rest = rules.beta, math.sqrt(1 - rules.beta**2)
    if not rules.slerp:
        return beta * before + rest * fresh
    a, b = before.norm(), fresh.norm()
    cosine = max(-1.0, min(1.0, (before.flatten() @ fresh.flatten() / (a * b)).item()))
    angle, share = math.acos(cosine), math.acos(beta) / (math.pi / 2)
    length = beta**2 * a + rest**2 * b
    if math.sin(angle) < 1e-4:
        return before / a * length
    u, w = math.sin((1 - share) * angle), math.sin(share * angle)
    return (u * before / a + w * fresh / b) / math.sin(angle) * length


def decode(chunks: Sequence[Tensor]) -> list[Tensor]:
    """Frames of each chunk of a video that begins with the first one: the meaning of ``tiny.Echo``."""
    echo, shown = None, []
    for chunk in chunks:
        frames = []
        for latent in chunk:
            frames += [latent] if echo is None else [0.5 * echo + latent, -0.5 * echo]
            echo = latent if echo is None else 0.5 * echo + latent
        shown.append(torch.stack(frames))
    return shown


def judge(world: World, rules: Rules, history: History, drawn: Drawn, n: int) -> None:
    latents = [*history.latents, drawn.x0]
    if rules.released:
        newest, clip = decode([drawn.x0])[-1], torch.cat(decode(latents[-rules.W :]))
        past = history.shorts
    else:
        newest, clip = decode(latents)[-1], torch.cat(decode(latents)[-rules.W :])
        past = history.shorts[-max(rules.W - 1, 1) :]
    drawn.short, drawn.long = world.short(newest, n), world.long(clip, n)
    a = min(n / (rules.N - 1), rules.tau) if rules.N > 1 else 0.0
    drawn.score = a * drawn.short + (1 - a) * drawn.long
    if n and drawn.short - sum(past) / len(past) > rules.quality:
        drawn.route = "append" if history.long - drawn.long > rules.transition else "ema"


def make_room(rules: Rules, history: History) -> None:
    if len(history.window) < (rules.L - rules.s) // CHUNK:
        return
    leaving = history.window.pop(0)
    if not rules.sinking or rules.policy != "stream-t1" or leaving.route == "discard":
        return
    if leaving.route == "append" and len(history.sinks) < rules.Smax // CHUNK:
        history.sinks.append(leaving)
        return
    sink = history.sinks[-1]
    for old, new in ((sink.keys, leaving.keys), (sink.values, leaving.values)):
        for layer, tensor in enumerate(new):
            old[layer] = rules.alpha * old[layer] + (1 - rules.alpha) * tensor


def seeds(rules: Rules, pool: list[History], n: int) -> list[tuple[int, int]]:
    """(rank, seed) of every candidate of chunk n."""
    if n == 0:
        return [(0, rules.seed + i) for i in range(rules.start)]
    each = rules.M if rules.competes else 1
    repeats = rules.released and rules.policy not in ("single", "best-of-n")
    return [
        (b, history.seed if repeats and i == 0 else rules.seed + 1000 * n + 100 * b + i)
        for b, history in enumerate(pool)
        for i in range(each)
    ]


def draw(world: World, rules: Rules, history: History, rank: int, seed: int, n: int) -> Drawn:
    fresh = world.draw(seed, 0)
    blends = n and rules.policy == "stream-t1" and rules.propagation
    drawn = Drawn(rank, seed, mix(rules, history.noise, fresh) if blends else fresh, fresh)
    drawn.x0 = denoise(world, rules, history, drawn, n)
    if rules.judges:
        judge(world, rules, history, drawn, n)
    return drawn


def grow(world: World, rules: Rules, parent: History, drawn: Drawn, n: int, row: int) -> History:
    history = copy.deepcopy(parent)
    _, entry = forward(world, rules, history, drawn.x0, 0.0, n)
    entry.route = drawn.route
    (history.sinks if n < rules.s // CHUNK else history.window).append(entry)
    history.seed, history.noise, history.long = drawn.seed, drawn.noise, drawn.long
    history.latents.append(drawn.x0)
    history.shorts.append(drawn.short)
    history.names.append((n, row))
    return history


@dataclass
class Step:
    """What happened at one chunk."""

    candidates: list[Drawn]
    kept: list[int]
    pool: list[History]  # once what is too old to reconsider has been decided


@torch.no_grad()
def search(world: World, rules: Rules) -> tuple[list[Step], History]:
    """Every chunk's candidates and survivors, and the history that wins."""
    pool, steps = [History()], []
    for n in range(rules.N):
        for history in pool:
            make_room(rules, history)
        drawn = [
            draw(world, rules, pool[rank], rank, seed, n) for rank, seed in seeds(rules, pool, n)
        ]
        kept = list(range(len(drawn)))
        if rules.competes:
            kept = sorted(kept, key=lambda row: (-drawn[row].score, row))[: rules.K]
        pool = [grow(world, rules, pool[drawn[row].rank], drawn[row], n, row) for row in kept]
        if rules.competes:
            old = max(n + 1 - rules.horizon, 0)
            agree = [history.names[:old] == pool[0].names[:old] for history in pool]
            pool, kept = (list(compress(values, agree)) for values in (pool, kept))
        steps.append(Step(drawn, kept, copy.deepcopy(pool)))
    rated = rules.competes or (rules.policy == "best-of-n" and rules.start > 1)
    if not rated:
        return steps, pool[0]
    films = [torch.cat(decode(history.latents)[-rules.horizon :]) for history in pool]
    final = [world.long(film, rules.N - 1) for film in films]
    return steps, pool[final.index(max(final))]
