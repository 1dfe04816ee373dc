"""Whatever is handed to the library's doors: it works, or a ValueError says in a sentence why not, before memory is taken."""

import json
import math

import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import AsyncEngine, Limits, Request, Settings
from runtime.engine import Engine
from runtime.job import JobFailed
from runtime.packing import Packed
from runtime.request import MAX_BACKLOG
from runtime.resuming import facts
from runtime.scenes import check_prompt, scenes_of
from runtime.settings import setting_names
from tests.tiny import tiny_engine

LONGEST_SENTENCE = 500
MANY = settings(max_examples=150)
numbers = st.one_of(
    st.integers(),
    st.integers(min_value=10**18, max_value=10**400),
    st.floats(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, 5e-324]),
)
texts = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc", "Co", "Cn"]), max_size=9),  # surrogates, controls
    st.sampled_from(["\0", "\ud800", "‮", "a" * 5000, "../../x", "𝕏" * 9, "%s{0}"]),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(setting_names())


def works_or_says_why(call):
    """What ``call`` returns; None after a ValueError of one sentence. Anything else that it raises fails the test."""
    try:
        return call()
    except ValueError as error:
        sentence = str(error)
        assert 10 < len(sentence) < LONGEST_SENTENCE and type(error) is ValueError, sentence
        sentence.encode("utf-8", "surrogatepass")
        return None


@pytest.fixture(scope="module")
def engine():
    return tiny_engine(1, {"search.policy": "single"})


@MANY
@given(name=st.one_of(st.sampled_from(NAMES), texts), value=st.one_of(junk, numbers))
def test_any_setting_is_taken_or_refused_in_a_sentence(name, value):
    made = works_or_says_why(lambda: Settings().with_changes({name: value}))
    if made is not None:  # what is taken can be written down and read again
        told = json.loads(made.to_json())
        room, _, key = name.rpartition(".")
        got = (told[room] if room else told)[key]
        assert got == value or (isinstance(value, int | float) and math.isclose(got, value))


@MANY
@given(changes=st.dictionaries(st.sampled_from(NAMES), numbers, max_size=6))
def test_any_numbers_together_are_taken_or_refused(changes):
    made = works_or_says_why(lambda: Settings().with_changes(changes))
    if made is not None:
        Limits().check(made) if made.seconds <= 600 and _rows(made) <= 64 else None


def _rows(made: Settings) -> int:
    return made.search.histories * made.search.expansions


@MANY
@given(
    prompts=st.one_of(junk, st.lists(st.tuples(numbers, texts), max_size=4)),
    chunks=st.integers(1, 50),
)
def test_any_prompts_are_scenes_or_refused(prompts, chunks):
    scenes = works_or_says_why(lambda: scenes_of(prompts, chunks))
    if scenes is not None:
        assert scenes[0].chunk == 0 and all(0 <= scene.chunk < chunks for scene in scenes)
        for scene in scenes:
            check_prompt(scene.prompt)


@settings(max_examples=40)
@given(prompt=texts)
def test_any_text_that_is_taken_can_be_read(engine, prompt):
    if works_or_says_why(lambda: scenes_of(prompt, 1)) is not None:
        engine.unknown_words(prompt)
        assert next(engine.stream(prompt)) is not None


@MANY
@given(
    priority=numbers,
    deadline_s=st.one_of(st.none(), numbers),
    budget_fps=st.one_of(st.none(), numbers),
    backlog=numbers,
)
def test_any_request_is_made_or_refused(priority, deadline_s, budget_fps, backlog):
    made = works_or_says_why(
        lambda: Request(
            prompts="x",
            priority=priority,
            deadline_s=deadline_s,
            budget_fps=budget_fps,
            backlog=backlog,
        )
    )
    if made is not None:
        assert -8 <= made.priority <= 8 and 1 <= made.backlog <= MAX_BACKLOG


@MANY
@given(
    name=st.sampled_from(["videos", "queued", "batch_rows", "candidates", "seconds"]), value=numbers
)
def test_any_limit_is_taken_or_refused(name, value):
    works_or_says_why(lambda: Limits(**{name: value}))


@MANY
@given(tree=st.dictionaries(st.sampled_from(["settings", "scenes", "index", "survivors"]), junk))
def test_any_tree_is_a_video_or_refused(tree):
    assert works_or_says_why(lambda: facts(Packed(tree, {}))) is None


@pytest.fixture(scope="module")
def many(engine):
    with AsyncEngine(tiny_engine(4), Limits(seconds=12.0, queued=1000)) as one:
        yield one


@settings(max_examples=60)
@given(
    prompt=texts,
    changes=st.dictionaries(
        st.sampled_from([n for n in NAMES if not n.startswith("run.")]), numbers, max_size=3
    ),
)
def test_any_request_is_queued_and_ends_or_is_refused_without_a_block(many, prompt, changes):
    def asked():
        wanted = many.settings.with_changes(changes)
        return many.submit(Request(prompts=prompt, settings=wanted))

    job = works_or_says_why(asked)
    if job is not None:
        job.cancel()
        with pytest.raises(JobFailed):
            for _ in job:
                pass
    assert many.stats().blocks_used == 0


def test_the_largest_request_is_refused_before_anything_is_allocated(monkeypatch):
    """A plan for 1024 candidates of a day of video asks for more than any machine has."""
    one = tiny_engine(4)
    monkeypatch.setattr(Engine, "turn", None)
    with AsyncEngine(one, Limits(candidates=1024, seconds=86_400.0)) as many:
        wanted = many.settings.with_changes({"search.histories": 1024, "search.expansions": 1})
        with pytest.raises(ValueError, match="search.histories: want at most"):
            many.submit(Request(prompts="x", settings=wanted))
        assert many.stats().blocks_used == 0


@pytest.mark.parametrize("count", [1000, 10**6])
def test_many_scenes_are_refused_by_their_number(count):
    pairs = [(i, "x") for i in range(count + 1)]
    with pytest.raises(ValueError, match="prompts: want 1 to 1000 scenes"):
        scenes_of(pairs, count + 1)
