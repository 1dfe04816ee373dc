"""Rows of the quality comparison for tests of what is made from them."""

from runtime.bench.quality.row import Cost, Key, Row


def row(method, prompt, scores=None, *, seed=42, seconds=5.0, passes=34, **more):
    """One video's row; scores that are not given are not there."""
    cost = Cost(passes, 81, 0, 0, 0.5)
    return Row(
        Key("sprites", seconds, method, prompt, seed),
        f"prompt {prompt}",
        scores or {},
        cost,
        **more,
    )
