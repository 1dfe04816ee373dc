"""The comparison with real weights from end to end: tiny random models of the same architecture, and VBench's stand-in."""

import json
import math
from pathlib import Path

import pytest
import torch

from runtime import convert
from runtime.bench.quality.__main__ import main
from runtime.bench.quality.real_world import RealWorld
from runtime.bench.quality.row import MEASURED, REWARDED
from runtime.bench.quality.store import read
from runtime.bench.quality.vbench_results import COLUMN_OF, DIMENSIONS
from runtime.bench.quality.worlds import Filing, Finishing, Remarking, Wishes, load_world
from runtime.generators import published
from runtime.rewards.videoalign import VideoAlign
from runtime.types import Clip
from tests import fake_vbench
from tests.published_folder import FRAME, adapter, small_row, tiny_models, wan_folder
from tests.reward_folder import write_folder

PROMPTS = ("red circle, moving", "blue circle / " + "very " * 60 + "slow")
ALL_OF = {  # of every command here
    "--preset": ["longlive"],
    "--device": ["cpu"],
    "--workers": ["1"],
    "--set": ["run.dtype=float32"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """$STREAM_T1_WEIGHTS with LongLive and both rewards in miniature."""
    folder, source = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("source")
    models = tiny_models()
    wan_folder(source / "Wan2.1-T2V-1.3B", models)
    state = {f"model.{name}": tensor for name, tensor in models.dit.state_dict().items()}
    torch.save({"generator": state}, source / "longlive_base.pt")
    torch.save({"generator_lora": adapter(models.dit, 4, "model.")}, source / "lora.pt")
    with pytest.MonkeyPatch.context() as patch:
        row = small_row("longlive", folder / ".sizes")
        patch.setitem(published.CONVERSIONS, "longlive", row)
        patch.setenv("STREAM_T1_WEIGHTS", str(folder))
        assert convert.main(["longlive", str(source), "--quiet"]) == 0
    for name in ("hpsv3", "videoalign"):
        write_folder(folder, name)
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with prompts; VBench is not installed."""
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def installed(place: Path, monkeypatch) -> None:
    programs, modules = fake_vbench.install(place / "tool")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(modules))


def quality(place: Path, world: str, *words: str, prompts: str = "prompts.txt") -> int:
    usual = [word for name, values in ALL_OF.items() for word in (name, *values)]
    where = ["--prompts-file", str(place / prompts), "--out", str(place / "out")]
    return main(["--world", world, *where, *usual, *words])


def frames_of(video: Path) -> torch.Tensor:
    import av

    with av.open(str(video)) as container:
        assert container.streams.video[0].frames  # counted in the index, as scorers ask it
        pictures = [
            torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)
        ]
    return torch.stack(pictures).permute(0, 3, 1, 2)


def test_videos_are_made_filed_scored_and_laid_beside_the_paper(place, monkeypatch, capsys):
    pytest.importorskip("av")
    installed(place, monkeypatch)
    words = ["--methods", "single", "stream-t1", "stream-t1[2x2]", "--prompts", "2"]
    assert quality(place, "vbench", *words) == 0
    videos = place / "out" / "videos" / "5s"
    names = json.loads((videos / "names.json").read_text())
    assert set(names.values()) == set(PROMPTS) and len(names) == 2
    assert {path.name for path in videos.iterdir()} == {"names.json", "single", "stream-t1"}
    for method in ("single", "stream-t1"):
        assert {path.name for path in (videos / method).iterdir()} == names.keys()
    assert f"{PROMPTS[0]}-0.mp4" in names
    found = frames_of(videos / "stream-t1" / f"{PROMPTS[0]}-0.mp4")
    assert found.shape == (45, 3, *FRAME) and found.float().std() > 1
    told = capsys.readouterr().out
    assert "ours (2 videos)" in told and "LongLive, 5 s, published | 97.00 | 96.78" in told
    assert "not scored" not in told.lower() and "by hand" not in told
    written = (place / "out" / "tables.md").read_text()
    assert told[told.index("|  | Subject") : told.index("rows and tables")].strip() in written
    _, rows = read(place / "out")
    assert len(rows) == 6
    assert all(math.isnan(row.scores[name]) for row in rows for name in MEASURED)
    assert all(math.isfinite(row.scores[name]) for row in rows for name in REWARDED)
    assert rows[0].scores["VQ"] != rows[-1].scores["VQ"]
    calls = list((place / "out" / "vbench").rglob("calls.log"))
    assert len(calls) == 2 * 5  # two names of the same settings share their videos and scores


def test_finished_rows_have_vbench_s_scores_of_their_own_videos(place, monkeypatch):
    pytest.importorskip("av")
    installed(place, monkeypatch)
    assert quality(place, "vbench", "--methods", "single", "beam", "--prompts", "2") == 0
    world = world_of(place, "vbench")
    _, rows = read(place / "out")
    for row in world.finish(rows):
        folder = place / "out" / "videos" / "5s" / row.key.method
        video = folder / world.scoring.name(row.key, row.text)
        for dimension, column in COLUMN_OF.items():
            expected = 100 * fake_vbench.score(dimension, video)
            assert row.scores[column] == pytest.approx(expected)
        assert row.scores["TA"] == next(r for r in rows if r.key == row.key).scores["TA"]


def world_of(place: Path, name: str, prompts: str = "prompts.txt", **wishes) -> RealWorld:
    changes = {"run.device": "cpu", "run.dtype": "float32"}
    given = {"prompts_file": place / prompts, "changes": changes, **wishes}
    world = load_world(name, Wishes(place / "out", **given))
    assert (
        isinstance(world, Filing) and isinstance(world, Finishing) and isinstance(world, Remarking)
    )
    return world


def test_videoalign_s_three_are_its_own_of_the_whole_video_and_of_its_spans(place):
    world = world_of(place, "moviegen")
    frames = (torch.rand(100, 3, *FRAME, generator=torch.Generator().manual_seed(0)) * 255).byte()
    judged = world.judge(frames, 1, 8)
    assert isinstance(world.videoalign, VideoAlign)
    whole = world.videoalign.detail(Clip(frames[None].float() / 255, PROMPTS[1], 8, 0))[0]
    assert [judged.scores[name] for name in REWARDED] == pytest.approx(whole.tolist(), rel=1e-5)
    last = world.videoalign.detail(Clip(frames[None, 96:].float() / 255, PROMPTS[1], 8, 0))[0]
    spans = [judged.over_time[name] for name in REWARDED]
    assert [len(values) for values in spans] == [3] * 3
    assert [values[-1] for values in spans] == pytest.approx(last.tolist(), rel=1e-5)
    assert judged.scores != world.judge(frames, 0, 8).scores
    single = world.judge(frames[:49], 1, 8).over_time["VQ"]
    assert math.isfinite(single[0]) and math.isnan(single[1])


def test_without_vbench_the_columns_are_said_to_be_missing_and_how_to_come_by_them(
    place, monkeypatch, capsys
):
    pytest.importorskip("av")
    words = ["--methods", "single", "--prompts", "1"]
    assert quality(place, "moviegen", *words) == 0
    told = capsys.readouterr().out
    assert "| single, 30 s, ours (1 videos) | not scored | not scored" in told
    assert "Subject, Background, Motion, Imaging, Aesthetic are not scored: " in told
    assert "has no module vbench2_beta_long. Install it (pip install vbench" in told
    commands = told.split("```")[1]
    assert "long_custom_input" in commands
    # Somebody runs them, here or on another machine.
    monkeypatch.setenv("PYTHONPATH", str(fake_vbench.install(place / "tool")[1]))
    import subprocess

    assert subprocess.run(["bash", "-ec", commands], capture_output=True).returncode == 0
    monkeypatch.delenv("PYTHONPATH")
    assert quality(place, "moviegen", *words, "--tables-only") == 0
    told = capsys.readouterr().out
    assert "not scored" not in told.lower()
    (place / "out" / "vbench" / "30s" / "single").rename(place / "copied")
    assert quality(place, "moviegen", *words, "--vbench-results", str(place / "copied")) == 0
    assert told.split("\n| single")[1] in capsys.readouterr().out
    assert quality(place, "moviegen", *words, "--vbench-results", str(place / "gone")) == 2
    assert "--vbench-results: want a folder 30s/single or single" in capsys.readouterr().err


def test_vbench_s_own_list_is_scored_by_its_standard_suite(place, monkeypatch, capsys):
    pytest.importorskip("av")
    installed(place, monkeypatch)
    asked = [("red circle", list(DIMENSIONS[:2])), ("blue circle", ["imaging_quality", "color"])]
    table = [{"prompt_en": prompt, "dimension": names} for prompt, names in asked]
    (place / "full.json").write_text(json.dumps(table))
    words = ["--methods", "single", "--prompts", "2", "--seeds", "2"]
    assert quality(place, "vbench", *words, prompts="full.json") == 0
    told = capsys.readouterr().out
    assert "ours (4 videos, 2 to 4 a column)" in told
    assert "Motion is not scored: none of these prompts is VBench's for motion_smoothness" in told
    names = {path.name for path in (place / "out" / "videos" / "5s" / "single").iterdir()}
    assert names == {f"{prompt}-{sample}.mp4" for prompt, _ in asked for sample in (0, 1)}
    world = world_of(place, "vbench", "full.json", look_only=True)
    scored = {
        row.text: [name for name in MEASURED if math.isfinite(row.scores[name])]
        for row in world.finish(read(place / "out")[1])
    }
    assert scored == {"red circle": ["Subject", "Background"], "blue circle": ["Imaging"]}


def test_a_dimension_that_fails_leaves_the_others_and_is_told_with_its_log(
    place, monkeypatch, capsys
):
    pytest.importorskip("av")
    installed(place, monkeypatch)
    command = place / "tool" / "bin" / "vbench"
    broken = "import sys\nif 'motion_smoothness' in sys.argv: sys.exit('no GPU')\nimport runpy"
    command.write_text(command.read_text().replace("import runpy", broken))
    assert quality(place, "vbench", "--methods", "single", "--prompts", "1") == 0
    told = capsys.readouterr().out
    assert "motion_smoothness: VBench ended with 1: no GPU (all of it in" in told
    assert "single, 5 s: Motion is not scored. Run VBench" in told


def test_prompts_that_cannot_be_used_are_told_before_anything_is_made(place, capsys):
    assert main(["--world", "vbench", "--out", str(place / "out")]) == 2
    assert "VBench_full_info.json comes with VBench" in capsys.readouterr().err
    (place / "full.json").write_text('[{"prompt_en": "either/or", "dimension": ["color"]}]')
    assert quality(place, "vbench", "--prompts", "1", prompts="full.json") == 2
    assert "finds videos by their prompts, got 'either/or'" in capsys.readouterr().err
    assert quality(place, "moviegen") == 2
    assert "--prompts: want 1 to 2, all that the file has, got 128" in capsys.readouterr().err
    assert not list(place.rglob("*.mp4"))
