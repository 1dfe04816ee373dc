"""Real processes make one video over gloo: the same as one process makes, and a clear end when one of them fails."""

import av
import pytest

from runtime.__main__ import main
from tests.rank_process import DOOR, VIDEOS, digest, door_engine, engine_of
from tests.rank_spawn import spawn


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Two processes: videos, then one is out of memory, then it is killed."""
    return spawn("library", tmp_path_factory.mktemp("library"), 2)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """Three processes behind the command line: all is well, then the second one hangs."""
    folder = tmp_path_factory.mktemp("door")
    return folder, spawn("door", folder, 3, left=[1])


@pytest.mark.parametrize("name", VIDEOS)
def test_two_processes_make_the_video_of_one_bit_for_bit(library, name):
    first, _ = library
    assert first.told is not None, first.said
    assert first.told[name] == digest(engine_of(VIDEOS[name]).stream("x"))


def test_a_rank_without_memory_stops_the_video_and_not_the_world(library):
    first, _ = library
    assert first.told["out of memory"].startswith(
        "RankFailed: rank 1 gave up: no memory to decode one candidate; lower run.decoder_rows"
    )
    assert first.told["after"] == digest(engine_of({}).stream("x"))


def test_a_killed_rank_is_named_by_those_who_are_left(library):
    first, second = library
    assert second.code == -9
    assert first.code == 0
    assert first.told["dead"].startswith("rank 1 has died: "), first.told["dead"]
    assert first.told["dead"].endswith("rank 0 was at 'scores of chunk 3'")


def frames_in(path):
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def test_three_processes_write_the_file_of_one(door, tmp_path, capsys):
    folder, ranks = door
    assert main([*DOOR, "-o", str(tmp_path / "one.mp4")], door_engine) == 0
    assert (folder / "well.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    seeds = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seeds")]
    assert seeds[0] in ranks[0].printed
    assert ranks[0].told["well"] == 0


def test_only_the_first_rank_reports_and_one_without_work_says_so(door):
    _, ranks = door
    assert [bool(rank.printed) for rank in ranks] == [True, False, False]
    note = "note: rank 2 has no history to work on and waits: there are 3 ranks for histories = 2"
    assert [note in rank.said for rank in ranks] == [False, False, True]


def test_a_rank_that_hangs_ends_the_others_by_its_name_and_the_file_stays_playable(door):
    folder, ranks = door
    for rank in (ranks[0], ranks[2]):
        assert rank.told["hangs"] == 1, rank.said
        assert "rank 1 has not answered within 10 s" in rank.said
    assert ranks[1].told is None  # it hung to the end
    whole, kept = frames_in(folder / "well.mp4"), frames_in(folder / "hangs.mp4")
    assert 0 < kept < whole
    assert f"{kept} frames" in ranks[0].said and "are playable in" in ranks[0].said
