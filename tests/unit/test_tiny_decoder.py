"""The tiny decoder: the published architecture, streamed like the full one, and weights in the package that come close."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import runtime
from runtime.bench.sprites.train_tiny_decoder import clips, psnr
from runtime.bench.sprites.world import held_out_captions
from runtime.generators import load_generator
from runtime.generators.tiny_decoder import TinyConfig, TinyDecoder, load_tiny, tiny_flops
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.weights import fill_random_

SMALL = TinyConfig(latent_channels=4, widths=(8, 6, 4, 4), blocks=2)
CONFIGS = {
    "as-published": SMALL,
    "patched": TinyConfig(
        latent_channels=4, widths=(6, 4, 5), blocks=1, space=(1, 2), time=(2, 2), patch=3
    ),
}
CPU = torch.device("cpu")
EMBEDDED = Path(runtime.__file__).parent / "generators" / "sprites" / "tiny_decoder.safetensors"


def build(config: TinyConfig = SMALL, dtype: torch.dtype = torch.float64) -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(config).to(dtype)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def one_frame_after_another(tiny: TinyDecoder, latents: torch.Tensor) -> torch.Tensor:
    """The architecture walked naively for one video [T, C, h, w]: depth first, a dictionary of last frames."""
    weights, config = tiny.state_dict(), tiny.config
    last: dict[int, torch.Tensor] = {}
    shown: list[torch.Tensor] = []

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weights[name + ".weight"], weights.get(name + ".bias"), padding="same")

    def climb(x: torch.Tensor, level: int, place: int) -> None:
        if level == len(config.space):
            pixels = conv(f"decoder.{place + 1}", x.relu())
            shown.append(F.pixel_shuffle(pixels, config.patch).clamp(0, 1))
            return
        for block in range(config.blocks):
            name, before = f"decoder.{place + block}.conv", last.get(place + block)
            last[place + block] = x
            y = torch.cat([x, torch.zeros_like(x) if before is None else before], dim=1)
            y = conv(f"{name}.2", conv(f"{name}.0", y).relu()).relu()
            x = (conv(f"{name}.4", y) + x).relu()
        place += config.blocks
        space = config.space[level]
        x = x.repeat_interleave(space, -1).repeat_interleave(space, -2)
        for frame in conv(f"decoder.{place + 1}.conv", x).chunk(config.time[level], dim=1):
            climb(conv(f"decoder.{place + 2}", frame), level + 1, place + 3)

    for latent in latents:
        climb(conv("decoder.1", 3 * torch.tanh(latent[None] / 3)).relu(), 0, 3)
    return torch.cat(shown[config.time_stride - 1 :])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("split", [[5], [1, 3, 1], [3, 2]], ids=str)
def test_any_split_is_the_architecture_walked_frame_by_frame(config, split):
    tiny, latents = build(config), noise(2, 5, 4, 3, 2)
    pieces, state = [], None
    for part in latents.split(split, dim=1):
        frames, state = tiny.decode(part, state)
        pieces.append(frames)
    got = torch.cat(pieces, dim=1)
    want = torch.stack([one_frame_after_another(tiny, video) for video in latents])
    assert got.shape == want.shape and want.min() < want.max()
    assert (got - want).abs().max() < 1e-12


def test_it_shows_as_many_frames_of_the_same_size_as_the_full_decoder():
    vae = WanVAE(VAEConfig(latent_channels=4, base_dim=4)).eval()
    tiny = build(dtype=torch.float32)
    ours, theirs = None, None
    for part in noise(1, 4, 4, 2, 3).float().split([1, 3], dim=1):
        frames, ours = tiny.decode(part, ours)
        full, theirs = vae.decode_next(part, theirs)
        assert frames.shape == full.shape and frames.min() >= 0 and frames.max() <= 1


def test_published_names_and_sizes():
    with torch.device("meta"):
        state = TinyDecoder(TinyConfig()).state_dict()
    known = {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.1.bias": (256,),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.5.conv.4.bias": (256,),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.11.conv.2.weight": (128, 128, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.15.conv.0.weight": (64, 128, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
        "decoder.22.bias": (3,),
    }
    assert {key: tuple(state[key].shape) for key in known} == known
    assert len(state) == 2 + 9 * 6 + 3 * 2 + 2
    assert (TinyConfig().time_stride, TinyConfig().space_stride) == (4, 8)


def test_the_step_is_pure_and_siblings_share_a_state():
    tiny, latents = build(), noise(2, 6, 4, 2, 2)
    _, state = tiny.decode(latents[:, :3], None)
    inputs = (latents, *state.caches)
    before = [tensor.clone() for tensor in inputs]
    left, *kept = tiny.step(latents[:, 3:], state.caches)
    right, _ = tiny.decode(latents[:, 3:].flip(1), state)
    again, _ = tiny.decode(latents[:, 3:], state)
    assert torch.equal(left, again) and not torch.equal(left, right)
    assert all(torch.equal(now, old) for now, old in zip(inputs, before, strict=True))
    for old, new in zip(state.caches, kept, strict=True):
        assert old.shape == new.shape and old.stride() == new.stride()
        assert new.untyped_storage().nbytes() == new.nbytes  # not a view of all frames


def test_rows_and_stack_pick_and_join_histories():
    tiny, latents = build(), noise(2, 4, 4, 2, 2)
    _, both = tiny.decode(latents[:, :2], None)
    later = latents[:, 2:]
    got, _ = tiny.decode(later.flip(0), tiny.rows(both, [1, 0]))
    want, _ = tiny.decode(later, tiny.stack([tiny.rows(both, [0]), tiny.rows(both, [1])]))
    assert (got.flip(0) - want).abs().max() < 1e-12
    assert tiny.stack([None, None]) is None


def test_random_weights_fill_one_built_without_memory():
    with torch.device("meta"):
        tiny = TinyDecoder(SMALL)
    fill_random_(tiny, CPU, torch.float32)
    frames, _ = tiny.decode(noise(1, 3, 4, 2, 2), None)
    assert frames.shape == (1, 9, 3, 16, 16) and frames.std() > 0


def test_published_files_load_by_name_with_or_without_the_encoder(tmp_path):
    tiny, latents = build(dtype=torch.float32), noise(1, 3, 4, 2, 2)
    state = tiny.state_dict()
    # Some published files hold a Grow of two frames where one is made: the last one's rows count.
    taller = torch.cat(
        [torch.randn_like(state["decoder.6.conv.weight"]), state["decoder.6.conv.weight"]]
    )
    published = {**state, "decoder.6.conv.weight": taller, "encoder.0.weight": torch.zeros(2)}
    sizes = json.dumps({"config": asdict(SMALL)})
    for name in ("tiny.pth", "tiny.safetensors"):
        path = tmp_path / name
        torch.save(published, path) if path.suffix == ".pth" else save_file(published, path)
        path.with_suffix(".json").write_text(sizes)
        loaded = load_tiny(path, CPU, torch.float32)
        assert torch.equal(loaded.decode(latents, None)[0], tiny.decode(latents, None)[0])
        assert not any(p.requires_grad for p in loaded.parameters())


class Surprise:
    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


def test_a_file_that_is_something_else_is_refused_by_name(tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.pth"
    path.with_suffix(".json").write_text(json.dumps({"config": asdict(SMALL)}))
    with pytest.raises(ValueError, match=r"tiny.pth: no such file"):
        load_tiny(path, CPU, torch.float32)
    whole = build(dtype=torch.float32).state_dict()
    damaged = {**whole, "decoder.1.bias": torch.full((8,), float("nan"))}
    cases = {
        r"tiny.pth: .* missing decoder.1.bias": {
            k: v for k, v in whole.items() if k != "decoder.1.bias"
        },
        r"tiny.pth: .* mis-shaped decoder.1.bias \(want \[8\], got \[7\]\)": {
            **whole,
            "decoder.1.bias": torch.zeros(7),
        },
        r"tiny.pth: decoder.1.bias not finite": damaged,
        r"tiny.pth: want tensors by name, got list": [torch.zeros(1)],
        r"tiny.pth: not a whole file of weights": {"decoder.1.bias": Surprise()},
    }
    for text, value in cases.items():
        torch.save(value, path)
        with pytest.raises(ValueError, match=text):
            load_tiny(path, CPU, torch.float32)
    assert "ran code" not in capsys.readouterr().out
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"tiny.pth: not a whole file of weights"):
        load_tiny(path, CPU, torch.float32)
    monkeypatch.setattr("runtime.generators.tiny_decoder.MAX_PTH_BYTES", 899)
    with pytest.raises(ValueError, match=r"tiny.pth: want at most 899 bytes of weights, got 900"):
        load_tiny(path, CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"space": (2, 2)}, r"tiny.space: want 3 numbers >= 1, one per level, got \(2, 2\)"),
        ({"time": (1, 0, 2)}, r"tiny.time: want 3 numbers >= 1"),
        ({"blocks": 0}, r"tiny.blocks: want at least 1, got 0"),
        ({"widths": (8, -1, 4, 4)}, r"tiny.widths: want numbers >= 1"),
    ],
    ids=str,
)
def test_config_says_what_it_wants(change, text):
    with pytest.raises(ValueError, match=text):
        TinyConfig(**{**asdict(SMALL), **change})


def test_decode_says_what_it_wants():
    tiny = build()
    with pytest.raises(
        ValueError, match=r"latents: want \[B, T, 4, h, w\] .* got \[1, 2, 5, 2, 2\]"
    ):
        tiny.decode(noise(1, 2, 5, 2, 2), None)
    _, state = tiny.decode(noise(2, 1, 4, 2, 2), None)
    with pytest.raises(
        ValueError, match=r"state: want \[rows, h, w\] = \[3, 2, 2\] .* got \[2, 2, 2\]"
    ):
        tiny.decode(noise(3, 1, 4, 2, 2), state)


@pytest.mark.parametrize("config", [*CONFIGS.values(), TinyConfig()], ids=[*CONFIGS, "full-size"])
def test_the_formula_counts_what_torch_counts(config):
    with torch.device("meta"):
        tiny = TinyDecoder(config)
    latents = torch.empty(2, 3, config.latent_channels, 5, 7, device="meta")
    caches = tiny.empty(latents)
    with FlopCounterMode(display=False) as counter:
        tiny.step(latents, caches)
    assert tiny_flops(config, 2, 5, 7) == counter.get_total_flops()


def test_the_embedded_one_is_small_and_close_to_the_full_decoder():
    assert EMBEDDED.stat().st_size <= 1_500_000
    vae = load_generator("sprites", CPU, torch.float32).decoder.vae
    tiny = load_tiny(EMBEDDED, CPU, torch.float32)
    held_out = clips(vae, 8, held_out_captions(16, seed=3), random.Random(2))
    assert psnr(tiny, *held_out) > 32  # 35 over many clips
    assert (tiny.config.time_stride, tiny.config.space_stride) == (4, 12)
