"""What the comparison with real weights reads and writes beside videos: names, the user's prompts, the paper's rows."""

import json
import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.bench.quality import naming
from runtime.bench.quality.methods import METHODS
from runtime.bench.quality.prompt_files import MOST_PROMPTS, read_prompt_file
from runtime.bench.quality.published_rows import PUBLISHED_ROWS, beside_the_paper, published
from runtime.bench.quality.row import COLUMNS, Cost, Key, Row

LONG = "a fox walks through fresh snow at dawn while the camera slowly follows it, " * 5


def row(seconds, method, prompt=0, seed=42, **scores) -> Row:
    key = Key("moviegen", seconds, method, prompt, seed)
    return Row(key, "a fox", scores, Cost(0, 0, 0, 0, 0.0))


@pytest.mark.parametrize(
    "prompt", ["A fox, running.", "a cat - a dog", "fox-3", "Ünïcödé 狐狸", ".."]
)
def test_vbench_finds_a_video_by_its_prompt_letter_for_letter(prompt):
    for sample in range(naming.SAMPLES):
        assert naming.file_name(prompt, sample, exact=True) == f"{prompt}-{sample}.mp4"


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400))
@example(LONG)
@example("狐" * 300)
@example("either/or")
@example("a\0b\n")
def test_every_prompt_gets_a_name_that_a_file_can_have(tmp_path_factory, prompt):
    name = naming.file_name(prompt, 4)
    path = tmp_path_factory.mktemp("names") / name
    path.touch()
    assert path.parent.name.startswith("names") and len(name.encode()) <= 255 - len("_000")
    assert name.endswith("-4.mp4") and name != naming.file_name(prompt, 3)


def test_prompts_that_differ_at_their_ends_or_in_a_slash_are_told_apart():
    prompts = [LONG + "one", LONG + "two", "either/or", "either\\or", "either_or"]
    assert len({naming.file_name(prompt, 0) for prompt in prompts}) == len(prompts)


def test_a_prompt_that_the_standard_suite_could_not_find_is_refused():
    with pytest.raises(ValueError, match=r"finds videos by their prompts, got 'either/or'"):
        naming.file_name("either/or", 0, exact=True)


def test_one_folder_a_method_and_no_two_of_a_table_share_one(tmp_path):
    names = [*METHODS, "stream-t1[4x2]", "stream-t1[noise.beta=0.3]", "stream-t1[noise.beta=-0.3]"]
    folders = {naming.video_folder(tmp_path, 5.0, name) for name in names}
    assert len(folders) == len(names)
    assert all(re.fullmatch(r"[\w.=-]+", folder.name, re.ASCII) for folder in folders)
    assert naming.video_folder(tmp_path, 30.0, "beam") == tmp_path / "videos" / "30s" / "beam"


def test_a_text_file_gives_its_lines_and_vbench_s_own_file_what_each_prompt_is_for(tmp_path):
    text = tmp_path / "moviegen.txt"
    text.write_text("\ufeffa fox \n\n  a crow\r\na fox\n", encoding="utf-8")
    listed = read_prompt_file(text)
    assert listed.texts == ("a fox", "a crow") and not listed.standard
    assert listed.asks(1, "imaging_quality")
    assert [listed.first(count) for count in (1, 2, 3)] == [["a fox"], ["a fox", "a crow"]] + [
        ["a fox", "a crow"]  # its third line is its first again, and is not made twice
    ]
    info = tmp_path / "VBench_full_info.json"
    entries = [("a fox", ["imaging_quality"]), ("a crow", ["color"]), ("a fox", ["color"])]
    entries = [{"prompt_en": p, "dimension": d, "auxiliary_info": {}} for p, d in entries]
    info.write_text(json.dumps(entries))
    listed = read_prompt_file(info)
    assert listed.standard and listed.texts == ("a fox", "a crow") and listed.full_info == info
    assert [listed.asks(index, "imaging_quality") for index in (0, 1)] == [True, False]
    assert listed.asks(0, "color") and listed.first(3) == ["a fox", "a crow"]
    with pytest.raises(ValueError, match="--prompts: want 1 to 3, all that the file has, got 4"):
        listed.first(4)


def test_all_of_movie_gen_video_bench_may_be_in_the_file(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text("\n".join(f"prompt {number}" for number in range(1003)))
    assert read_prompt_file(path).first(128)[-1] == "prompt 127"
    with pytest.raises(
        ValueError, match="--prompts: want 1 to 1003, all that the file has, got 1004"
    ):
        read_prompt_file(path).first(1004)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", b"", f"want 1 to {MOST_PROMPTS} prompts, got 0"),
        ("p.txt", b"a fox\n\xff\xfe", "line 2 is not valid UTF-8"),
        ("p.txt", b"a fox\n" + b"x" * 5000, "line 2: want at most 4096 characters, got 5000"),
        ("p.txt", b"x" * (4 * 2**20 + 1), "want at most 4 MiB"),
        ("p.json", b"[1,\n2", r"is not JSON \(line 2\)"),
        ("p.json", b"[" * 200_000, "is not JSON"),
        ("p.json", b"{}", "want a list of 1 to 10000 prompts .* got dict"),
        ("p.json", b"[]", "got 0 of them"),
        ("p.json", b'["a fox"]', 'entry 1: want an object with a "prompt_en", got .a fox.'),
        ("p.json", b'[{"prompt_en": 3, "dimension": []}]', "entry 1: want an object with"),
        ("p.json", b'[{"prompt_en": " ", "dimension": ["color"]}]', "entry 1: is empty"),
        (
            "p.json",
            b'[{"prompt_en": "a", "dimension": "color"}]',
            "want a list of names .* 'color'",
        ),
        ("p.json", b'[{"prompt_en": "a", "dimension": [3]}]', "want names in its"),
    ],
)
def test_a_file_that_holds_no_prompts_is_told_with_its_entry(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_prompt_file(path)
    assert str(caught.value).startswith("--prompts-file: ") and str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"--prompts-file: cannot read .*No such file"):
        read_prompt_file(tmp_path / "none.txt")


def test_the_paper_s_rows_are_of_our_methods_and_complete():
    assert all(row.method in METHODS and set(row.scores) == set(COLUMNS) for row in PUBLISHED_ROWS)
    assert len({(row.seconds, row.method) for row in PUBLISHED_ROWS}) == len(PUBLISHED_ROWS) == 9
    assert published(30.0, "no-pruning").scores["Aesthetic"] == 61.22
    assert published(5.0, "beam") is None


def test_ours_stands_above_the_paper_s_row_and_the_difference_below_it():
    ours = [
        row(30.0, "beam", 0, Subject=98.0, VQ=-0.1, TA=math.nan),
        row(30.0, "beam", 1, Subject=98.2, VQ=0.1),
        row(30.0, "stream-t1[4x2]", Subject=99.0),
    ]
    lines = beside_the_paper(ours, "preset longlive, commit 4f1c2ab").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert [first for first, *_ in cells] == [
        "beam, 30 s, ours (2 videos)",
        "Beam search, 30 s, published",
        "difference",
    ]
    subject, vq, ta = (1 + COLUMNS.index(name) for name in ("Subject", "VQ", "TA"))
    assert [line[subject] for line in cells] == ["98.10", "98.28", "-0.18"]
    assert [line[vq] for line in cells] == ["0.000", "-0.077", "+0.077"]
    assert [line[ta] for line in cells] == ["not scored", "1.159", "-"]
    assert "preset longlive, commit 4f1c2ab" in lines[6] and "stream-t1[4x2]" not in "".join(lines)
    assert lines[7].startswith("Not scored: ")
    assert beside_the_paper([row(7.0, "beam", Subject=98.0)], "anything") == ""


def test_a_column_that_fewer_videos_have_is_told():
    ours = [
        row(5.0, "single", 0, Subject=97.0),
        row(5.0, "single", 1, VQ=0.3),
        row(5.0, "single", 2, VQ=0.2),
    ]
    assert "ours (3 videos, 1 to 2 a column)" in beside_the_paper(ours, "x")
