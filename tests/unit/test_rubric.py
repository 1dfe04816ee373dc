"""Rubrics taken out of code like the authors': put together as the code would, never run, and never guessed."""

import ast
import json
import random
import sys
from pathlib import Path

import pytest

from runtime.manifest import verify
from runtime.rewards import rubric
from runtime.rewards.qwen2vl_words import read_rubric
from runtime.rewards.templates import MAX_FILES, find_templates
from runtime.shards import FolderWriter

MARKS = rubric.MARKS
IMAGE, VIDEO = "hpsv3", "videoalign"
VQ, MQ, TA = MARKS[VIDEO]

# As one package has it: the template and its end are constants of one file and meet in another.
CONSTANTS = '''
INSTRUCTION = """
Is this {{drawing}} like:  {text_prompt}?
"""
with_token = """
So: <|Reward|>
END
"""
without_token = "So:"
'''
USES = """
from constants import INSTRUCTION, with_token, without_token

def chat(picture, text, special):
    return [{"type": "text", "text": (
        INSTRUCTION.format(text_prompt=text) + with_token if special
        else INSTRUCTION.format(text_prompt=text) + without_token
    )}]
"""
TOGETHER = "\nIs this {drawing} like:  {prompt}?\n\nSo: <|Reward|>\nEND\n"

# As the other has it: whole templates, of which one has the tokens.
TEMPLATES = f'''
SIMPLE = "Is {{what}} good? {{text_prompt}}"
DETAILED = """
Sharp? {VQ}
END
Smooth? {MQ}
END
Like {{text_prompt}}? {TA}
END
"""

def build(prompt, kind):
    if kind == "simple":
        return SIMPLE.format(what="it", text_prompt=prompt)
    return DETAILED.format(text_prompt=prompt)
'''


def written(tmp_path, **files: str):
    folder = tmp_path / "theirs"
    folder.mkdir(exist_ok=True)
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def test_constants_of_one_file_that_meet_in_another_become_one_text(tmp_path):
    text, found = rubric.extract(IMAGE, written(tmp_path, constants=CONSTANTS, uses=USES))
    assert text == TOGETHER
    assert found.file.name == "uses.py" and found.line == 6


def test_the_one_template_with_the_tokens_is_taken_though_it_is_used_elsewhere(tmp_path):
    text, found = rubric.extract(VIDEO, written(tmp_path, templates=TEMPLATES))
    assert text == f"\nSharp? {VQ}\nEND\nSmooth? {MQ}\nEND\nLike {{prompt}}? {TA}\nEND\n"
    assert found.label == "DETAILED"


@pytest.mark.parametrize(
    "source",
    [
        'def f(p): return f"Good {p}? <|Reward|>."',
        'MARK = "<|Reward|>"\ndef f(p): return f"Good {p}? {MARK}."',
        'def f(p): return "Good " + p + "? <|Reward|>."',
        'def f(p): return "Good %s? <|Reward|>." % p',
        'def f(p): return "Good {}? <|Reward|>.".format(p)',
        'def f(p): return "Good {0}? {1}.".format(p, "<|Reward|>")',
        'def f(p): return "".join(["Good ", "{x}? ".format(x=p), "<|Reward|>."])',
        'T = {"a": "Good {x}? <|Reward|>.", "b": "Good {x}?"}\ndef f(p): return T["a"].format(x=p)',
        'def f(p): return "  Good [P]? <|Reward|>.\\n".strip().replace("[P]", p)',
        'class C:\n    text: str = "Good {x}? "\n    def f(self, p): return self.text.format(x=p) + "<|Reward|>."',
        'A = "Good {x}"\nB = A + "? "\nC = B\ndef f(p): return C.format(x=p) + "<|Reward|>."',
        'MARK = "<|Reward|>"\nT = "Good {p}? {m}."\ndef f(p): return T.format(p=p, m=MARK)',
        'import constants\ndef f(p): return "Good " + p + constants.END\nEND = "? <|Reward|>."',
    ],
)  # fmt: skip
def test_every_way_to_write_a_template_gives_the_same_text(tmp_path, source):
    assert rubric.extract(IMAGE, written(tmp_path, one=source))[0] == "Good {prompt}? <|Reward|>."


def test_braces_that_format_would_make_single_are_single_and_those_of_an_f_string_too(tmp_path):
    folder = written(tmp_path, one='T = "{{x}} {p} <|Reward|>"')
    assert rubric.extract(IMAGE, folder)[0] == "{x} {prompt} <|Reward|>"
    folder = written(tmp_path, one='def f(p): return f"{{x}} {p} <|Reward|>"')
    assert rubric.extract(IMAGE, folder)[0] == "{x} {prompt} <|Reward|>"


def test_nothing_of_the_code_is_run(tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\nimport does_not_exist\n"
    folder = written(tmp_path, one=trap + 'T = "{p} <|Reward|>"')
    before = set(sys.modules)
    assert rubric.extract(IMAGE, folder)[0] == "{prompt} <|Reward|>"
    assert not (tmp_path / "ran").exists()
    assert not {name for name in set(sys.modules) - before if "one" in name}


SEVERAL = 'OLD = "Old {p} <|Reward|>"\nNEW = "New {p} <|Reward|>"\nTABLE = {"third": "Third {p} <|Reward|>"}\n'


def test_where_several_texts_fit_they_are_listed_with_file_and_line_and_one_is_named(tmp_path):
    folder = written(tmp_path, one=SEVERAL)
    with pytest.raises(ValueError) as raised:
        rubric.extract(IMAGE, folder)
    for place in ("OLD (", "one.py:1)", "NEW (", "one.py:2)", "TABLE.third (", "one.py:3)", "--name"):  # fmt: skip
        assert place in str(raised.value)
    assert rubric.extract(IMAGE, folder, "NEW")[0] == "New {prompt} <|Reward|>"
    assert rubric.extract(IMAGE, folder, "TABLE.third")[0] == "Third {prompt} <|Reward|>"
    with pytest.raises(ValueError, match="say with --name"):
        rubric.extract(IMAGE, folder, "NEWER")


def test_a_name_that_two_files_give_two_meanings_is_not_guessed(tmp_path):
    folder = written(
        tmp_path,
        a='END = "one <|Reward|>"',
        b='END = "two <|Reward|>"',
        c="from a import END\ndef f(p): return p + END",
    )
    with pytest.raises(ValueError, match="no text in it has"):
        rubric.extract(IMAGE, folder)


@pytest.mark.parametrize(
    "source",
    [
        'T = "{p} and {q} <|Reward|>"',  # two places
        'T = "<|Reward|>"',  # none
        'T = "{p} <|Reward|> <|Reward|>"',
        'T = "{p}"',
        "A = B\nB = A\nT = A",
        "x = 1",
    ],
)
def test_what_does_not_fit_is_not_taken(tmp_path, source):
    with pytest.raises(ValueError, match=r"no text in it has <\|Reward\|>"):
        rubric.extract(IMAGE, written(tmp_path, one=source))


def test_tokens_in_another_order_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="no text in it has"):
        rubric.extract(VIDEO, written(tmp_path, one=f'T = "{{p}} {MQ} {VQ} {TA}"'))


def test_files_that_no_python_can_read_are_passed_over(tmp_path):
    folder = written(tmp_path, bad="print 'old'", one='T = "{p} <|Reward|>"')
    (folder / "zero.py").write_bytes(b"\0\0")
    (folder / "long.py").write_text("#" * (1 << 20) + "\n")
    assert rubric.extract(IMAGE, folder)[0] == "{prompt} <|Reward|>"
    with pytest.raises(ValueError, match="nothing that this Python can parse"):
        rubric.extract(IMAGE, folder / "bad.py")


def test_a_place_without_python_or_with_too_much_is_told(tmp_path):
    with pytest.raises(ValueError, match="want a Python file"):
        rubric.extract(IMAGE, tmp_path)
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.py").touch()
    with pytest.raises(ValueError, match=f"at most {MAX_FILES} Python files"):
        rubric.extract(IMAGE, tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "a0 = 'x'\n" + "".join(f"a{n + 1} = a{n} + a{n}\n" for n in range(200)),  # 2^200 characters
        "T = " + " + ".join(["'x'"] * 100),
        "T = " + "(" * 150 + "'x'" + ")" * 150,
    ],
)
def test_source_that_grows_or_nests_without_end_costs_little(tmp_path, source):
    folder = written(tmp_path, one=source, two='T2 = "{p} <|Reward|>"')
    assert rubric.extract(IMAGE, folder)[0] == "{prompt} <|Reward|>"


def program(draw: random.Random) -> str:
    """A function of ``p`` that returns a text, put together in every way that is understood."""
    known = ["p", "'<|Reward|>'"]
    lines = ["def f(p):"]

    def value() -> str:
        return draw.choice(known) if draw.random() < 0.6 else repr(draw.choice([" a", "b ", "[M]", "{k}", "", "\n"]))  # fmt: skip

    for number in range(draw.randint(1, 6)):
        a, b = value(), value()
        text = draw.choice(["x {{y}} ", " ", "%%", "{{{{z}}}}"])
        form = draw.choice(
            [
                f"{a} + {b}",
                f"{a} + 'c' + {b}",
                f"''.join([{a}, {b}, 'd'])",
                f"{text + '{k}|{m}'!r}.format(k={a}, m={b})",
                f"{text + '{}{}'!r}.format({a}, {b})",
                f"({a} + ' [M] ').replace('[M]', {b})",
                f"(' ' + {a} + '  ').strip()",
                f"({a} + ' ').rstrip() + {b}",
                f"'e %s f' % {a}" if a == "p" else f"{b} + {a}",
                f"f'g{{{{h}}}} {{{a}}}i'" if a.isidentifier() else f"{a} + {b}",
            ]
        )
        lines.append(f"    v{number} = {form}")
        known.append(f"v{number}")
    return "\n".join([*lines, f"    return {known[-1]} + '.'"])


def test_programs_mean_here_what_python_makes_of_them():
    """Of our own, so that they may be run: what Python returns must be among what is found."""
    met = 0
    for seed in range(4000):
        source = program(random.Random(seed))
        made: dict = {}
        exec(source, made)
        text = made["f"]("<P>")
        if text.count("<P>") != 1 or text.count("<|Reward|>") != 1 or "{prompt}" in text:
            continue
        met += 1
        tree = {Path("one.py"): ast.parse(source)}
        found = {
            "".join(piece if isinstance(piece, str) else "<P>" for piece in one.template)
            for one in find_templates(tree, lambda template: True)
        }
        assert text in found, source
    assert met > 200


def test_source_that_nests_beyond_reason_is_told(tmp_path):
    with pytest.raises(ValueError, match="nests too deeply; name the file"):
        rubric.extract(IMAGE, written(tmp_path, one="T = " + " + ".join(["'x'"] * 900)))


def converted(folder):
    with FolderWriter(folder) as out:
        out.json("config", {})
        out.facts(source="somewhere")
    return folder


def test_the_command_writes_it_beside_the_weights_and_into_their_manifest(tmp_path, capsys):
    theirs, home = written(tmp_path, constants=CONSTANTS, uses=USES), converted(tmp_path / "hpsv3")
    assert rubric.main([IMAGE, "--from", str(theirs), "-o", str(home)]) == 0
    assert read_rubric(home / "rubric.txt", MARKS[IMAGE]) == TOGETHER
    verify(home)
    assert json.loads((home / "manifest.json").read_text())["facts"] == {"source": "somewhere"}
    assert "uses.py:6" in capsys.readouterr().out
    (theirs / "constants.py").write_text(CONSTANTS.replace("So:", "Thus:"))
    assert rubric.main([IMAGE, "--from", str(theirs), "-o", str(home)]) == 0
    verify(home)
    assert "Thus:" in (home / "rubric.txt").read_text()


def test_the_command_says_in_a_line_what_is_wrong_and_leaves_what_is_there(tmp_path, capsys):
    theirs, home = written(tmp_path, one="x = 1"), converted(tmp_path / "hpsv3")
    before = sorted(path.name for path in home.iterdir())
    assert rubric.main([IMAGE, "--from", str(theirs), "-o", str(home)]) == 2
    assert rubric.main([IMAGE]) == 2
    assert rubric.main(["pickscore", "--from", str(theirs)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert sorted(path.name for path in home.iterdir()) == before


def test_a_missing_rubric_names_the_command(tmp_path):
    (tmp_path / "hpsv3").mkdir()
    with pytest.raises(ValueError, match=r"python -m runtime.rewards.rubric hpsv3 --from .* -o .*hpsv3"):  # fmt: skip
        read_rubric(tmp_path / "hpsv3" / "rubric.txt", MARKS[IMAGE])
