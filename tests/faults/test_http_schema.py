"""What OpenAPI says of the server is so: generated requests, right and wrong, never meet an undescribed answer."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from tests.fake_worker import FakeWorker
from tests.serving import options_in, running

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 8  # of each of a dozen operations, in each mode
REPEATABLE = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """Videos are made in no time; an order may be one too many."""
    options = options_in(tmp_path_factory.mktemp("schema"), seconds=1, jobs=4, body_s=1.0)
    with running(options, FakeWorker()) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_openapi_describes(api, mode):
    tried = set()
    # A limit, or a full house, may refuse what is well-formed.
    excluded = [schemathesis.checks.positive_data_acceptance]
    for found in api.get_all_operations():
        operation = found.ok()

        @REPEATABLE
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case):
            case.call_and_validate(excluded_checks=excluded, timeout=20)
            tried.add(case.operation.label)

        with contextlib.suppress(Unsatisfiable):  # /health has nothing that could be wrong
            answers()
    assert {"POST /v1/videos", "POST /v1/videos/sync", "GET /v1/videos/{name}/content"} < tried
