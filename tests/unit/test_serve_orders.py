"""Bodies become orders or a 400 that names the field, whatever they hold and however they were sent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.serve.bodies import CreateVideo, Search
from runtime.serve.errors import ApiError
from runtime.serve.options import Bounds, ServeOptions
from runtime.serve.orders import FRIENDLY, Menu, read_form, read_json

MENU = Menu(ServeOptions(bounds=Bounds(seconds=30)), "64x64")
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from(sorted(CreateVideo.model_fields))
SEARCH = st.dictionaries(st.sampled_from(sorted(Search.model_fields)), PLAIN, max_size=4)
BODIES = st.dictionaries(FIELDS | st.text(max_size=6), ANYTHING | SEARCH, max_size=5).map(
    lambda fields: {"prompt": "x"} | fields
)


def read(content: bytes):
    return MENU.order(read_json(content), strict=True)


@given(BODIES)
@settings(max_examples=150)
def test_any_object_is_an_order_or_a_400_that_names_something(fields):
    try:
        order = read(json.dumps(fields).encode())
    except ApiError as error:
        assert error.status == 400 and error.message and "\n" not in error.code
    else:
        assert 0 < order.seconds <= 30 and order.prompts[0][1].strip()
        assert all(abs(value) < 2**63 for value in order.settings.values() if type(value) is int)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_400(content):
    try:
        assert isinstance(read_json(content), dict)
    except ApiError as error:
        assert error.status == 400


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=10)), max_size=6))
def test_any_form_is_an_order_or_a_400(pairs):
    try:
        MENU.order(read_form([("prompt", "x"), *pairs]), strict=False)
    except ApiError as error:
        assert error.status == 400


def test_a_form_means_what_the_same_json_means():
    told = {
        "prompt": "a", "seconds": "4", "priority": 2, "search": {"K": 3, "seed": 5, "pruning": False, "tau": 0.5},
        "settings": {"noise.mode": "slerp", "memory.sink_frames": 6},
        "scenes": [{"chunk": 2, "prompt": "b"}, {"chunk": 4, "prompt": "c"}],
    }  # fmt: skip
    form = [
        ("prompt", "a"), ("seconds", "4"), ("priority", "2"), ("search[K]", "3"), ("search[seed]", "5"),
        ("search[pruning]", "false"), ("search[tau]", "0.5"), ("settings[noise.mode]", "slerp"),
        ("settings[memory.sink_frames]", "6"), ("scenes[][chunk]", "2"), ("scenes[][chunk]", "4"),
        ("scenes[][prompt]", "b"), ("scenes[][prompt]", "c"),
    ]  # fmt: skip
    order = read(json.dumps(told).encode())
    assert MENU.order(read_form(form), strict=False) == order
    texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in told.items()]  # fmt: skip
    assert MENU.order(read_form(texts), strict=False) == order
    assert order.prompts == ((0, "a"), (2, "b"), (4, "c"))
    assert order.settings == {
        "search.histories": 3, "search.seed": 5, "search.pruning": False, "reward.tau": 0.5,
        "noise.mode": "slerp", "memory.sink_frames": 6,
    }  # fmt: skip


def test_what_is_not_asked_for_stays_as_the_server_was_started():
    order = read(b'{"prompt": "x"}')
    assert (order.settings, order.seconds, order.priority) == ({}, 5.0, 0)
    started = ServeOptions(settings=ServeOptions().settings.with_changes({"seconds": 9.0}))
    assert Menu(started, "1x1").order({"prompt": "x"}, strict=True).seconds == 9.0


def test_every_name_of_search_has_a_setting():
    assert set(FRIENDLY) == set(Search.model_fields)


def test_a_setting_that_search_says_too_is_refused():
    with pytest.raises(ApiError, match="say it once"):
        read(b'{"prompt": "x", "search": {"seed": 1}, "settings": {"search.seed": 2}}')


def test_the_limit_of_candidates_counts_what_is_drawn_and_not_what_is_finished():
    """Halving draws ``drafts`` and finishes ``expansions``."""
    search = {"policy": "halving", "histories": 4, "expansions": 1}
    body = {"prompt": "x", "search": search, "settings": {"search.drafts": 17}}
    with pytest.raises(ApiError, match="at most 64, got 68"):
        read(json.dumps(body).encode())
    body["settings"] = {"search.drafts": 16}
    assert read(json.dumps(body).encode())


@pytest.mark.parametrize("name", ["search.horizon_chunks", "search.draft_passes", "reward.stride"])
def test_no_number_is_larger_than_a_machine_counts(name):
    for number, sentence in ((10**6, "at most 10000"), (10**4000, "below 2.63")):
        with pytest.raises(ApiError, match=sentence) as caught:
            read(json.dumps({"prompt": "x", "settings": {name: number}}).encode())
        assert len(caught.value.message) <= 1000


@pytest.mark.parametrize("name", ["memory.quality_threshold", "memory.transition_threshold"])
def test_an_infinite_threshold_is_refused(name):
    with pytest.raises(ApiError):
        read(b'{"prompt": "x", "settings": {"%s": 1e999}}' % name.encode())
