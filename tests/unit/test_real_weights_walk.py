"""The way of docs/real-weights.md at a tiny size, through the commands' own doors: convert, rubric, generate, export, generate."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime import __main__ as generate
from runtime import convert, manifest
from runtime.catalogue import CATALOGUE
from runtime.generators import published
from runtime.rewards import CONVERTED, FETCHED, PUBLISHED, load_reward, published_folder, rubric
from runtime.rewards.published import CONVERSIONS
from tests.published_folder import FRAME, adapter, prefixed, small_row, tiny_models, wan_folder
from tests.reward_folder import KINDS, SIZES, byte_tokeniser, random_net

PROMPT = "red circle moving"
FRAMES = 9 + 12  # of two chunks of the tiny generator
CODE = {  # what the authors' code holds, in words of our own
    "hpsv3": 'ASKED = "How good is a picture of {text}?"\n\ndef ask(text):\n    return ASKED.format(text=text) + " <|Reward|>"\n',
    "videoalign": 'ASKED = "Sharp? <|VQ_reward|> Smooth? <|MQ_reward|> Shows {text}? <|TA_reward|>"\n\ndef ask(text):\n    return ASKED.format(text=text)\n',
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """What a download leaves: LongLive beside Wan, both rewards beside their backbones, and the authors' code."""
    root = tmp_path_factory.mktemp("downloads")
    models = tiny_models()
    wan_folder(root / "longlive" / "Wan2.1-T2V-1.3B", models)
    trained = root / "longlive" / "models"
    trained.mkdir()
    state = {f"model.{name}": tensor + 0.01 for name, tensor in models.dit.state_dict().items()}
    torch.save({"generator": state}, trained / "longlive_base.pt")
    lora = adapter(models.dit, 4, "model.")
    torch.save({"generator_lora": lora}, trained / "lora.pt")
    for name, kind in KINDS.items():
        backbone = root / name / "Qwen2-VL"
        backbone.mkdir(parents=True)
        table = SIZES | {"vocab_size": byte_tokeniser(kind.marks).get_vocab_size()}
        (backbone / "config.json").write_text(json.dumps(table))
        byte_tokeniser(()).save(str(backbone / "tokenizer.json"))
        state = dict(random_net(kind, table, seed=len(name)).state_dict())
        if name == "hpsv3":
            save_file(state, root / name / "HPSv3.safetensors")
        else:
            (root / name / "checkpoint-3").mkdir()
            torch.save(prefixed(state, "base_model.model."), root / name / "checkpoint-3/model.pth")
            facts = {"model_config": {"output_dim": table.get("output_dim", 1)}}
            (root / name / "model_config.json").write_text(json.dumps(facts))
        (root / f"{name}-code").mkdir()
        (root / f"{name}-code" / "prompts.py").write_text(CODE[name])
    return root


@pytest.fixture(scope="module")
def home(downloads, tmp_path_factory) -> Path:
    """$STREAM_T1_WEIGHTS after the conversions, before the rubrics."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(published.CONVERSIONS, "longlive", small_row("longlive", folder / ".sizes"))
        patch.setenv("STREAM_T1_WEIGHTS", str(folder))
        dtype = {"longlive": ["--dtype", "bfloat16"]}
        for name in ("longlive", *KINDS):
            words = [name, str(downloads / name), *dtype.get(name, []), "--verify", "--quiet"]
            assert convert.main(words) == 0
    return folder


def exported(monkeypatch, reward: str, *words: str) -> None:
    """``python -m runtime.export``, which reads the real arguments."""
    from runtime.export import __main__ as export

    monkeypatch.setattr(sys, "argv", ["export", reward, "--to", "onnx", *words])
    assert export.main() == 0


def frames_of(video: Path) -> list[tuple[int, int]]:
    """Height and width of every frame, decoded."""
    import av

    with av.open(video) as container:
        return [(frame.height, frame.width) for frame in container.decode(video=0)]


def decisions(trace: Path) -> list[list[tuple]]:
    """Of every chunk, what was drawn, kept and done with the memory."""
    chunks = json.loads(trace.read_text())["chunks"]
    keys = ("row", "parent", "seed", "rank", "route")
    return [[tuple(c[key] for key in keys) for c in chunk["candidates"]] for chunk in chunks]


def scores(trace: Path) -> torch.Tensor:
    chunks = json.loads(trace.read_text())["chunks"]
    return torch.tensor([[c["short"], c["long"]] for chunk in chunks for c in chunk["candidates"]])


def test_a_stranger_s_way_from_downloads_to_a_video_by_either_backend(
    downloads, home, tmp_path, monkeypatch, capsys
):
    for package in ("av", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(home))

    def video(name: str, *more: str) -> int:
        words = [
            "--generator",
            "longlive",
            "--device",
            "cpu",
            "--set",
            "run.dtype=float32",
            "--seconds",
            "2.6",
        ]
        files = ["-o", str(tmp_path / f"{name}.mp4"), "--trace", str(tmp_path / f"{name}.json")]
        return generate.main([PROMPT, *words, *files, *more])

    assert video("early") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "python -m runtime.rewards.rubric hpsv3 --from" in told
    for name in KINDS:
        code, target = downloads / f"{name}-code", home / name / "rubric.txt"
        assert rubric.main([name, "--from", str(code), "-o", str(target)]) == 0
    assert video("torch") == 0
    graphs = tmp_path / "graphs"
    size = f"{FRAME[0]}x{FRAME[1]}"
    exported(monkeypatch, "hpsv3", "-o", str(graphs), "--frame-size", size, "--prompt-words", "8")
    engines = ["--reward-backend", "onnxruntime", "--set", f"reward.graphs={graphs}"]
    assert (
        video("both", *engines) == 2
    )  # VideoAlign has no graphs yet, and nothing is taken instead
    assert "python -m runtime.export videoalign --to onnx" in capsys.readouterr().err
    exported(
        monkeypatch, "videoalign", "-o", str(graphs), "--frame-size", size, "--frames", str(FRAMES)
    )
    assert video("graphs", *engines) == 0
    for name in ("torch", "graphs"):
        shapes = frames_of(tmp_path / f"{name}.mp4")
        assert len(shapes) == FRAMES and len(set(shapes)) == 1
        assert shapes[0][0] % FRAME[0] == shapes[0][1] % FRAME[1] == 0  # small ones are enlarged
    traces = [tmp_path / f"{name}.json" for name in ("torch", "graphs")]
    ran = [json.loads(trace.read_text())["implementations"]["image reward"] for trace in traces]
    assert ran == ["torch", "onnxruntime"]
    one, other = decisions(traces[0]), decisions(traces[1])
    assert one == other and [len(chunk) for chunk in one] == [4, 4]
    by_torch, by_graphs = (scores(trace) for trace in traces)
    assert by_torch.std(0).min() > 1e-3  # or any backend would decide alike
    assert torch.allclose(by_torch, by_graphs, rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_told_with_a_command_that_can_bring_it(tmp_path, monkeypatch):
    """No reward is said to be fetched or converted that cannot be."""
    assert set(FETCHED) == CATALOGUE.keys() & PUBLISHED.keys()
    assert set(CONVERTED) == CONVERSIONS.keys()
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(tmp_path))
    for name in PUBLISHED:
        with pytest.raises(ValueError) as caught:
            published_folder(name, "")
        told = str(caught.value)
        assert (f"python -m runtime.fetch {name}" in told) == (name in FETCHED)
        assert (f"runtime.convert {name} SOURCE -o {tmp_path / name}" in told) == (
            name in CONVERTED
        )
        assert name in told and "docs/rewards.md" in told or name in CONVERTED


def test_reward_weights_that_name_the_inner_folder_are_told_the_outer_one(home):
    assert published_folder("hpsv3", str(home)) == home / "hpsv3"
    with pytest.raises(ValueError, match=rf"holds hpsv3/.*hpsv3'; did you mean '{home}'\?"):
        published_folder("hpsv3", str(home / "hpsv3"))


def test_a_rubric_may_be_read_by_whoever_may_read_the_weights(downloads, home, tmp_path, capsys):
    target = tmp_path / "rubric.txt"
    code = str(downloads / "hpsv3-code")
    assert rubric.main(["hpsv3", "--from", code, "-o", str(target)]) == 0
    assert target.stat().st_mode == (home / "hpsv3" / "config.json").stat().st_mode
    capsys.readouterr()
    nowhere = tmp_path / "nowhere" / "rubric.txt"
    assert rubric.main(["hpsv3", "--from", code, "-o", str(nowhere)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {nowhere.parent}: no such folder; convert")


def test_a_rubric_that_was_there_and_is_gone_is_told_with_its_command(downloads, home, tmp_path):
    shutil.copytree(home / "hpsv3", tmp_path / "hpsv3")
    code = str(downloads / "hpsv3-code")
    assert rubric.main(["hpsv3", "--from", code, "-o", str(tmp_path / "hpsv3")]) == 0
    load_reward("hpsv3", weights=str(tmp_path))
    (tmp_path / "hpsv3" / "rubric.txt").unlink()
    with pytest.raises(ValueError, match=r"rubric.txt: no such file; .*runtime.rewards.rubric hps"):
        load_reward("hpsv3", weights=str(tmp_path))
    (tmp_path / "hpsv3" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"not there: config.json"):
        manifest.verify(tmp_path / "hpsv3", ("rubric.txt",))


def test_a_folder_says_under_which_licence_its_card_put_it():
    for name, row in published.CHECKPOINTS.items():
        assert CATALOGUE[name].licences[0] == row.licence


def test_convert_s_help_names_everything_it_converts(capsys):
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*published.CHECKPOINTS, *CONVERTED)) and "``" not in told
