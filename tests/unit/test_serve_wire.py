"""Lines, their limits, and what is none."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.serve.wire import MAX_LINE_BYTES, LineCutter, line_of, message_of


@pytest.mark.parametrize(
    "message",
    [{"do": "x", "text": 'ü\n\u2028"\\ 🎬'}, {"deep": [1, {"a": None}], "big": 2**63}, {}],
    ids=str,
)
def test_a_message_survives_its_line(message):
    line = line_of(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert message_of(line[:-1]) == message


def test_numbers_that_json_does_not_have_are_null():
    told = line_of({"scores": [math.nan, 1.5, -math.inf], "deep": {"long": math.inf}})
    assert json.loads(told) == {"scores": [None, 1.5, None], "deep": {"long": None}}


def test_a_message_that_no_line_holds_is_refused_by_its_sender():
    room = MAX_LINE_BYTES - len(line_of({"x": ""}))
    assert len(line_of({"x": "a" * room})) == MAX_LINE_BYTES
    with pytest.raises(ValueError, match=f"want at most {MAX_LINE_BYTES} bytes"):
        line_of({"x": "a" * (room + 1)})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "want an object, got list"),
        (b"null", "want an object, got NoneType"),
        (b"\xff\xfe{}", "want UTF-8"),
        (b'{"x": NaN}', "NaN is no JSON number"),
        (b'{"x": "\\ud800"}', "want UTF-8"),
        (b'{"\\udfff": 1}', "want UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"x": 1}{"y": 2}', "not valid JSON"),
        (b"\x80\x04\x95", "want UTF-8"),  # a pickle
    ],
    ids=range(11),
)
def test_what_is_no_message_is_told_in_a_sentence(line, why):
    with pytest.raises(ValueError, match=f"^a line: .*{why}"):
        message_of(line)


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.integers(1, 7))
def test_lines_are_cut_the_same_however_they_arrive(lines, step):
    whole = b"".join(line + b"\n" for line in lines)
    cutter = LineCutter(limit=15)
    pieces = [whole[at : at + step] for at in range(0, len(whole), step)]
    got = [line for piece in pieces for line in cutter.feed(piece)]
    assert got == [line if len(line) < 15 else None for line in lines]


def test_a_line_that_is_too_long_is_not_held():
    cutter = LineCutter(limit=10)
    for _ in range(1000):
        assert list(cutter.feed(b"x" * 1000)) == []
    assert sum(map(len, cutter._parts)) == 0
    assert list(cutter.feed(b"\nok\n")) == [None, b"ok"]
