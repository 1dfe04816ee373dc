"""A whole folder that diffusers and transformers saved, converted, against the models that saved it: float32, 1e-5."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.generators import Generator, load_generator
from runtime.generators.dit_keys import to_diffusers_keys
from runtime.generators.folder import SHARED
from runtime.generators.vae_keys import to_diffusers_keys as to_diffusers_vae_keys
from runtime.generators.wan_layers import dense_attention
from runtime.shards import FolderWriter
from tests.published_folder import DIT, TEXT, VAE, save_tokeniser, small_row
from tests.tiny import generator_of, scrambled

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@dataclasses.dataclass(frozen=True)
class Theirs:
    dit: Any
    vae: Any
    text: Any


def their_models() -> Theirs:
    torch.manual_seed(0)
    dit = diffusers.WanTransformer3DModel(
        num_attention_heads=DIT["heads"],
        attention_head_dim=DIT["dim"] // DIT["heads"],
        in_channels=DIT["channels"],
        out_channels=DIT["channels"],
        text_dim=DIT["text_dim"],
        freq_dim=DIT["freq_dim"],
        ffn_dim=DIT["ffn_dim"],
        num_layers=DIT["layers"],
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=VAE["base_dim"],
        z_dim=VAE["latent_channels"],
        dim_mult=VAE["dim_mult"],
        num_res_blocks=VAE["res_blocks"],
        temperal_downsample=VAE["time_downsample"],
        latents_mean=VAE["latent_mean"],
        latents_std=VAE["latent_std"],
    )
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(**TEXT, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    )
    return Theirs(*(scrambled(model) for model in (dit, vae, text)))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return their_models()


@pytest.fixture(scope="module")
def source(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: transformer and text encoder in shards with an index."""
    folder = tmp_path_factory.mktemp("diffusers")
    theirs.dit.save_pretrained(folder / "transformer", max_shard_size="20KB")
    theirs.vae.save_pretrained(folder / "vae")
    theirs.text.save_pretrained(folder / "text_encoder", max_shard_size="2KB")
    (folder / "tokenizer").mkdir()
    save_tokeniser(folder / "tokenizer" / "tokenizer.json")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def ours(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("converted")
    row = small_row("wan-1.3b", folder / "sizes")
    with FolderWriter(folder / "out") as out:
        row(source, out)
    return load_generator(str(folder / "out"), torch.device("cpu"), torch.float32)


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape and want.abs().max() > 0.1
    assert (got - want).abs().max() < 1e-5 * max(1.0, want.abs().max())


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator_of(seed))


@torch.no_grad()
def test_one_chunk_of_the_denoiser(ours, theirs):
    dit = ours.dit
    x, prompt = normal(2, 3, 4, 4, 6, seed=1), normal(2, DIT["text_len"], 8, seed=2)
    times = torch.full((2, 3), 625.0, dtype=torch.float64)
    rope = dit.rope(torch.tensor([[0, 1, 2]]), 4, 6)
    got = dit(x, times, dit.text_context(prompt), rope, lambda i, q, k, v: dense_attention(q, k, v))
    want = theirs.dit(x.transpose(1, 2), torch.full((2,), 625.0), prompt).sample
    close(got, want.transpose(1, 2))


@torch.no_grad()
def test_the_autoencoder_both_ways_and_piece_by_piece(ours, theirs):
    """Ours speaks normalised latents, by the statistics in the file; theirs leaves that to its caller."""
    vae = ours.decoder.vae
    mean, std = (torch.tensor(VAE[name]).view(4, 1, 1) for name in ("latent_mean", "latent_std"))
    frames = torch.rand(1, 9, 3, 16, 24, generator=generator_of(3))
    posterior = theirs.vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist.mean.transpose(1, 2)
    close(vae.encode(frames), (posterior - mean) / std)
    latents = normal(1, 6, 4, 4, 6, seed=4)
    want = theirs.vae.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)
    close(vae.decode_fresh(latents) * 2 - 1, want)
    first, state = ours.decoder.decode(latents[:, :3], None)
    rest, _ = ours.decoder.decode(latents[:, 3:], state)
    close(torch.cat([first, rest], dim=1) * 2 - 1, want)


@torch.no_grad()
def test_the_text_encoder(ours, theirs):
    ids = torch.tensor([ours.text.token_ids("red circle moving")])
    want = theirs.text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    close(ours.text.encode("red circle moving"), want)


def test_ours_go_back_by_name(ours):
    back = their_models()
    back.dit.load_state_dict(to_diffusers_keys(ours.dit.state_dict()), strict=True)
    state = to_diffusers_vae_keys(ours.decoder.vae.state_dict(), VAE["res_blocks"])
    back.vae.load_state_dict(state, strict=True)
    mine = {k: v for k, v in ours.text.encoder.state_dict().items() if k not in SHARED}
    theirs = {k: v for k, v in back.text.state_dict().items() if k not in SHARED}
    assert mine.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("transformer", '"image_dim": 1280', "image_dim 1280 .want None"),
        ("transformer", '"qk_norm": "rms_norm"', "not Wan2.1-T2V's: qk_norm 'rms_norm'"),
        ("transformer", '"num_layers": 0', "num_layers: want a whole number of at least 1, got 0"),
        ("transformer", '"in_channels": 36', "want as many channels in as out, got 36 and 4"),
        ("transformer", '"num_layers": 3', r"missing blocks\.2\."),
        ("vae", '"is_residual": true', "is_residual True"),
        ("vae", '"z_dim": 3', "latent_mean: want none or 3 values"),
        ("text_encoder", '"feed_forward_proj": "relu"', "feed_forward_proj 'relu'"),
    ],
)
def test_a_model_that_is_not_wan_s_is_named(source, tmp_path, part, change, words):
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(f"{{{change}}}")))
    with (
        pytest.raises(ValueError, match=words) as caught,
        FolderWriter(tmp_path / "out") as out,
    ):
        small_row("wan-1.3b", tmp_path / "sizes")(folder, out)
    assert str(folder / part) in str(caught.value) and not (tmp_path / "out").exists()
