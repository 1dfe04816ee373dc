"""Windows of candidates whose histories have chunks in common, told by letters."""

import torch

from runtime.score import Place
from runtime.window import Window
from tests.tiny import generator_of

FPS = 16
PLACE = Place("a red circle", FPS, 4, 11)
# The chunks that each row's history holds, equal letters one tensor; the newest chunk is everybody's own.
STORIES = {
    "two pairs from the start": ["ab", "ab", "cd", "cd"],
    "two pairs that part late": ["abc", "abc", "abd", "abd"],
    "three generations": ["abcd", "abcd", "abce", "afgh"],
    "one parent": ["abc", "abc", "abc", "abc"],
    "strangers": ["ab", "cd", "ef", "gh"],
    "one and three": ["abc", "dbc", "dbc", "dbc"],
    "not side by side": ["abc", "def", "abc", "def"],
    "a first chunk": ["", "", "", ""],
}


def story(rows: list[str], size=(60, 90), frames=12) -> Window:
    source = generator_of(5)
    letters = sorted(set("".join(rows)))
    chunks = {letter: torch.rand(frames, 3, *size, generator=source) for letter in letters}
    newest = torch.rand(len(rows), frames, 3, *size, generator=source)
    return Window(newest, tuple(tuple(chunks[letter] for letter in row) for row in rows))


def moved(past, device):
    """The same chunks elsewhere: what was one tensor stays one."""
    there = {id(chunk): chunk.to(device) for row in past for chunk in row}
    return tuple(tuple(there[id(chunk)] for chunk in row) for row in past)
