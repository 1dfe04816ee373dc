"""What the README tells a newcomer to type works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_makes_a_video(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    video = names["video"]
    assert isinstance(video, torch.Tensor)
    assert video.shape == (33, 3, 96, 96)  # 9 + 12 + 12 frames: 2 s
    assert video.min() >= 0
    assert video.max() <= 1
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_example_is_short():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = [line for line in example.splitlines() if line.strip() and "import" not in line]
    assert len(code) <= 10


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_every_local_link_leads_somewhere(link):
    assert (Path(__file__).parents[2] / link).exists()
