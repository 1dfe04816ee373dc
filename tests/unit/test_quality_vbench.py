"""VBench is called with its own options and its files are read: against a stand-in that finds videos by their names."""

import json
import sys
from pathlib import Path

import pytest

from runtime.bench.quality import vbench_tool
from runtime.bench.quality.vbench_results import DIMENSIONS, read_results, video_of
from runtime.bench.quality.vbench_tool import Folder
from tests import fake_vbench

VIDEOS = ("a fox-0.mp4", "a fox-1.mp4", "a crow-0.mp4")


def result(whole, values, names=VIDEOS):
    return [whole, [{"video_path": f"/x/{n}", "video_results": v} for n, v in zip(names, values)]]  # noqa: B905


def write(folder: Path, table, name="results_eval_results.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(table))
    return folder


@pytest.fixture
def tool(tmp_path, monkeypatch) -> Path:
    """The stand-in where VBench would be."""
    programs, modules = fake_vbench.install(tmp_path / "vbench")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    return tmp_path


def folder_of(
    root: Path, long: bool = False, full_info: Path | None = None, names=VIDEOS
) -> Folder:
    videos = root / "videos"
    videos.mkdir(exist_ok=True)
    for name in names:
        (videos / name).write_bytes(name.encode())
    return Folder(videos, root / "results", long, full_info)


def calls(root: Path, dimension: str) -> list[str]:
    return (root / "results" / dimension / "calls.log").read_text().splitlines()


def test_results_come_out_in_percent_whatever_scale_single_videos_are_on(tmp_path):
    table = {
        "subject_consistency": result(0.9, [0.8, 0.9, 1.0]),
        "imaging_quality": result(0.7, [60.0, 70.0, 80.0]),  # percent
        "background_consistency": result(0.95, [14.0, 15.2, 16.4]),  # summed over 16 pairs
        "dynamic_degree": result(0.3, [True, False, False]),
    }
    found = read_results(write(tmp_path, table), VIDEOS)
    assert found.folder == {"Subject": 90.0, "Imaging": 70.0, "Background": 95.0}
    assert found.videos["a fox-0.mp4"] == pytest.approx(
        {"Subject": 80.0, "Imaging": 60.0, "Background": 87.5}
    )
    for column, whole in found.folder.items():
        ours = [scores[column] for scores in found.videos.values()]
        assert sum(ours) / len(ours) == pytest.approx(whole)


def test_dimensions_may_lie_in_files_and_folders_of_their_own(tmp_path):
    write(tmp_path / "a" / "evaluation_results", {"subject_consistency": result(0.5, [0.5] * 3)})
    write(tmp_path / "b", {"aesthetic_quality": result(0.6, [0.6] * 3)}, "late_eval_results.json")
    write(tmp_path / "b", {"not": "ours"}, "late_full_info.json")
    assert read_results(tmp_path, VIDEOS).folder == {"Subject": 50.0, "Aesthetic": 60.0}
    assert read_results(tmp_path / "nowhere", VIDEOS).folder == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v/a fox-1.mp4", "a fox-1.mp4"),
        ("/v/split_clip/a fox-1/a fox-1_002.mp4", "a fox-1.mp4"),
        ("/v/clips/a fox-1_002.mp4", "a fox-1.mp4"),
        ("/v/a fox-1-Scene-003.mp4", "a fox-1.mp4"),
        ("/v/a fox-11.mp4", None),
        ("/v/a fox-1_0-1_002.mp4", "a fox-1_0-1.mp4"),
        ("/v/a fox.mp4", None),
    ],
)
def test_a_path_in_the_results_belongs_to_the_video_it_was_cut_from(path, name):
    assert video_of(path, {*VIDEOS, "a fox-1_0-1.mp4"}) == name


def test_a_video_s_clips_are_averaged(tmp_path):
    clips = ["a fox-0_000.mp4", "a fox-0_001.mp4", "a crow-0_000.mp4"]
    table = {"motion_smoothness": result(0.9, [0.8, 1.0, 0.9], clips)}
    found = read_results(write(tmp_path, table), VIDEOS)
    assert found.videos == {
        "a fox-0.mp4": pytest.approx({"Motion": 90.0}),
        "a crow-0.mp4": pytest.approx({"Motion": 90.0}),
    }


def test_a_dimension_without_videos_is_told_and_not_taken_for_a_score(tmp_path):
    found = read_results(write(tmp_path, {"motion_smoothness": [float("nan"), []]}), VIDEOS)
    assert found.folder == {} and found.videos == {}
    assert found.notes[0].startswith("Motion: VBench found no video to score")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ([], "want dimensions and their results, got list"),
        ({"motion_smoothness": 0.9}, "want a result and a list of videos, got 0.9"),
        ({"motion_smoothness": result(90.0, [90.0] * 3)}, r"want a result in \[0, 1\] .* got 90"),
        ({"motion_smoothness": result(0.9, [0.1, 0.1, 0.1])}, "on the result's scale, got 0.1 on"),
        ({"motion_smoothness": result(0.9, [-1.0, 0.5, 0.5])}, "on the result's scale, got 0 on"),
        ({"motion_smoothness": [0.9, ["a fox-0.mp4"]]}, "want videos with a video_path"),
        ({"motion_smoothness": result(0.9, ["0.9"] * 3)}, "a fox-0.mp4: want a number, got '0.9'"),
        ({"motion_smoothness": result(0.9, [float("nan")] * 3)}, "want a finite score, got nan"),
        ({"motion_smoothness": result(0.9, [0.9], ["a cat-0.mp4"])}, "about other videos.*a cat-0"),
    ],
)
def test_a_file_that_is_not_vbench_s_is_told_and_named(tmp_path, table, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_results(write(tmp_path, table), VIDEOS)
    assert str(tmp_path) in str(caught.value)


def test_half_a_file_and_two_files_of_one_dimension_are_told(tmp_path):
    (write(tmp_path, {}) / "results_eval_results.json").write_text('{"motion_')
    with pytest.raises(ValueError, match="is not JSON; VBench may have been stopped"):
        read_results(tmp_path, VIDEOS)
    table = {"motion_smoothness": result(0.9, [0.9] * 3)}
    write(write(tmp_path, table), table, "b_eval_results.json")
    with pytest.raises(ValueError, match="motion_smoothness: is in .* and in .*; keep the one"):
        read_results(tmp_path, VIDEOS)


@pytest.mark.parametrize("long", [False, True])
def test_vbench_scores_every_video_of_a_folder(tool, long):
    folder = folder_of(tool, long)
    assert vbench_tool.missing(long, sys.executable) == ""
    assert [vbench_tool.score(folder, d) for d in DIMENSIONS] == [""] * 5
    found = read_results(folder.results, VIDEOS)
    assert found.videos.keys() == set(VIDEOS) and not found.notes
    assert all(len(scores) == 5 for scores in found.videos.values())
    clips = range(fake_vbench.CLIPS if long else 1)
    scores = [fake_vbench.score("aesthetic_quality", folder.videos / VIDEOS[0], c) for c in clips]
    expected = 100 * sum(scores) / len(scores)
    assert found.videos[VIDEOS[0]]["Aesthetic"] == pytest.approx(expected)
    mode = "long_custom_input" if long else "custom_input"
    assert calls(tool, "imaging_quality") == [f"{mode} imaging_quality"]


def test_the_standard_suite_scores_what_it_finds_by_its_own_list(tool):
    info = tool / "full_info.json"
    entries = [("a fox", ["imaging_quality"]), ("a crow", ["color"])]
    info.write_text(json.dumps([{"prompt_en": p, "dimension": d} for p, d in entries]))
    folder = folder_of(tool, full_info=info)
    assert vbench_tool.score(folder, "imaging_quality") == ""
    found = read_results(folder.results, VIDEOS)
    assert found.videos.keys() == {"a fox-0.mp4", "a fox-1.mp4"}
    log = (folder.results / "imaging_quality" / vbench_tool.LOG).read_text()
    assert "a fox-4.mp4" in log and "a fox-1.mp4" not in log
    told = vbench_tool.score(folder, "motion_smoothness")
    assert told.startswith("motion_smoothness: VBench ended with 1: ZeroDivisionError")


def test_a_result_is_kept_until_the_videos_are_others(tool):
    folder = folder_of(tool)
    for _ in range(2):
        assert vbench_tool.score(folder, "motion_smoothness") == ""
    assert len(calls(tool, "motion_smoothness")) == 1
    (folder.videos / "a crow-1.mp4").write_bytes(b"another")
    (folder.results / "motion_smoothness" / "left.over").touch()
    assert vbench_tool.score(folder, "motion_smoothness") == ""
    assert not (folder.results / "motion_smoothness" / "left.over").exists()
    names = [*VIDEOS, "a crow-1.mp4"]
    assert read_results(folder.results, names).videos.keys() == set(names)


def test_vbench_of_another_environment_is_asked_by_its_python(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert vbench_tool.missing(False, "/elsewhere/bin/python") == "there is no `vbench` command"
    other = tmp_path / "vbench" / "bin" / "python"
    other.symlink_to(sys.executable)
    assert vbench_tool.missing(False, str(other)) == ""
    words = vbench_tool.command(folder_of(tool), "motion_smoothness", str(other))
    assert words[0] == str(other.parent / "vbench")
    assert "cannot be run (No such file" in vbench_tool.missing(True, "/elsewhere/bin/python")


def test_what_is_not_installed_is_told_with_commands_that_a_shell_understands(tool, monkeypatch):
    import subprocess

    folder = folder_of(tool)
    commands = vbench_tool.by_hand(folder, DIMENSIONS[:2], sys.executable)
    assert subprocess.run(["bash", "-ec", commands], capture_output=True).returncode == 0
    assert read_results(folder.results, VIDEOS).folder.keys() == {"Subject", "Background"}
    monkeypatch.delenv("PYTHONPATH")
    assert "has no module vbench2_beta_long" in vbench_tool.missing(True, sys.executable)
