"""Text templates in Python source, put together as the source would and without running a line of it.

A template is text with holes where the source would put values it does not hold itself. Known are literals, f-strings,
``+``, ``%s``, ``str.format``, ``str.join``, ``strip`` and ``replace``, choices by ``if``, and names: of assignments in the
same file or, where only one file has them, in another, and of entries in dictionaries. Anything else is a hole.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

MAX_FILES = 2000
MAX_FILE_BYTES = 1 << 20
MAX_BYTES = 64 << 20
MAX_TEXT = 1 << 16  # characters of a template
MAX_CHOICES = 8  # templates that one expression may be


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a value goes; ``name`` is what the source calls it."""

    name: str


Template = tuple["str | Hole", ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A template, where it stands and the names that it was put together from."""

    template: Template
    file: Path
    line: int
    label: str


@dataclass(slots=True)
class Scope:
    """The assignments of one file, and those of all files that have only one meaning."""

    shared: dict[str, tuple[Scope, ast.expr] | None]
    read: dict[
        int, list[Template]
    ]  # by the identity of a node: what it may be, so that none is read twice
    own: dict[str, ast.expr] = field(default_factory=dict)

    def find(self, name: str) -> tuple[Scope, ast.expr] | None:
        if name in self.own:
            return self, self.own[name]
        return self.shared.get(name)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a walk is: the file, what its names mean, and what the expression is for."""

    path: Path
    scope: Scope
    label: str


def read_sources(place: Path) -> dict[Path, ast.Module]:
    """The parsed .py files of a folder, or the one file. ValueError when there are none or far too many."""
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ValueError(f"{place}: want a Python file, or a folder with some")
    if len(paths) > MAX_FILES:
        raise ValueError(
            f"{place}: want at most {MAX_FILES} Python files; name the package's folder"
        )
    sources, total = {}, 0
    for path in paths:
        total += path.stat().st_size
        if total > MAX_BYTES:
            raise ValueError(
                f"{place}: want at most {MAX_BYTES} bytes of Python; name the package's folder"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            sources[path] = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # written for another Python, or no Python
    if not sources:
        raise ValueError(f"{place}: holds nothing that this Python can parse")
    return sources


def find_templates(
    sources: dict[Path, ast.Module], fits: Callable[[Template], bool]
) -> Iterator[Found]:
    """Every expression in the sources that may be a template which ``fits``, without what that is made of."""
    shared: dict[str, tuple[Scope, ast.expr] | None] = {}
    read: dict[int, list[Template]] = {}
    scopes = {}
    for path, tree in sources.items():
        scopes[path] = scope = Scope(shared, read)
        # What a module assigns has the last word over what its functions do.
        scope.own |= dict(_assignments(ast.walk(tree))) | dict(_assignments(tree.body))
        for name, value in scope.own.items():
            there = shared.get(name)
            same = there is None and name not in shared
            shared[name] = (scope, value) if same else _agreed(there, value)
    for path, tree in sources.items():
        yield from _walk(tree, Site(path, scopes[path], ""), fits)


def _agreed(there: tuple[Scope, ast.expr] | None, value: ast.expr) -> tuple[Scope, ast.expr] | None:
    """A name that two files use means something elsewhere only if both mean the same."""
    return there if there is not None and ast.dump(there[1]) == ast.dump(value) else None


def _assignments(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def _walk(node: ast.AST, site: Site, fits: Callable[[Template], bool]) -> Iterator[Found]:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        site = replace(site, label=node.targets[0].id)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        site = replace(site, label=node.name)
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            named = isinstance(key, ast.Constant) and site.label
            own = f"{site.label}.{key.value}" if named else site.label  # type: ignore[union-attr]
            yield from _walk(value, replace(site, label=own), fits)
        return
    if isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.Attribute):
        fitting = [template for template in Reader(site.scope).read(node) if fits(template)]
        if fitting:
            names = (part.id for part in ast.walk(node) if isinstance(part, ast.Name))
            label = "+".join(dict.fromkeys(name for name in names if site.scope.find(name)))
            for template in fitting:
                yield Found(template, site.path, node.lineno, label or site.label)
            return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, site, fits)


class Reader:
    """Turns an expression into the templates that it may be; none if it is no text."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def read(self, node: ast.expr) -> list[Template]:
        known = self.scope.read
        if id(node) not in known:
            known[
                id(node)
            ] = []  # for whoever asks while it is being read: a name that leads to itself
            templates = [t for t in self._read(node) if _length(t) <= MAX_TEXT]
            known[id(node)] = templates[:MAX_CHOICES]
        return known[id(node)]

    def _read(self, node: ast.expr) -> list[Template]:
        match node:
            case ast.Constant(value=str(text)):
                return [(text,)]
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return self._meaning(self.scope.find(name))
            case ast.Subscript(slice=ast.Constant(value=key)):
                return self._entry(node.value, key)
            case ast.IfExp():
                return self.read(node.body) + self.read(node.orelse)
            case ast.JoinedStr(values=values):
                parts = [v.value if isinstance(v, ast.FormattedValue) else v for v in values]
                return self._concatenated(parts)
            case ast.BinOp(op=ast.Add()) if self.read(node.left) or self.read(node.right):
                return self._concatenated([node.left, node.right])
            case ast.BinOp(op=ast.Mod()):
                return self._percent(node)
            case ast.Call(func=ast.Attribute() as function):
                return self._method(node, function)
            case ast.Call(func=ast.Name(id="dedent"), args=[text]):
                return self.read(text)
        return []

    def _or_hole(self, node: ast.expr) -> list[Template]:
        return self.read(node) or [(Hole(ast.unparse(node)[:40]),)]

    def _meaning(self, found: tuple[Scope, ast.expr] | None) -> list[Template]:
        return Reader(found[0]).read(found[1]) if found else []

    def _entry(self, table: ast.expr, key: object) -> list[Template]:
        """Of a dictionary that has a name."""
        match table:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found = self.scope.find(name)
            case _:
                found = None
        if found is not None and isinstance(found[1], ast.Dict):
            for its_key, value in zip(found[1].keys, found[1].values, strict=True):
                if isinstance(its_key, ast.Constant) and its_key.value == key:
                    return self._meaning((found[0], value))
        return []

    def _percent(self, node: ast.BinOp) -> list[Template]:
        """A text with one %s in it."""
        filled: list[Template] = []
        for template in self.read(node.left):
            match template:
                case (str(text),) if text.count("%s") == 1:
                    before, _, after = text.partition("%s")
                    filled.append(_joined((before, Hole(ast.unparse(node.right)[:40]), after)))
        return filled

    def _concatenated(self, nodes: list[ast.expr]) -> list[Template]:
        templates: list[Template] = [()]
        for node in nodes:
            choices = self._or_hole(node)
            templates = [a + b for a in templates for b in choices][:MAX_CHOICES]
            templates = [t for t in templates if _length(t) <= MAX_TEXT]
        return [_joined(template) for template in templates]

    def _method(self, node: ast.Call, function: ast.Attribute) -> list[Template]:
        method, subject = function.attr, function.value
        if method == "join" and node.args and isinstance(node.args[0], ast.List | ast.Tuple):
            parts = node.args[0].elts
            whole = self.read(subject) == [("",)] and any(map(self.read, parts))
            return self._concatenated(parts) if whole else []
        templates = self.read(subject)
        if method == "format":
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            return [filled for t in templates if (filled := self._formatted(t, given, node.args))]
        if method in ("strip", "lstrip", "rstrip") and not node.args:
            return [_stripped(template, method) for template in templates]
        if method == "replace" and len(node.args) == 2:
            old = node.args[0]
            if isinstance(old, ast.Constant) and isinstance(old.value, str) and old.value:
                new = self._or_hole(node.args[1])[0]
                return [_replaced(template, old.value, new) for template in templates]
        return []

    def _formatted(
        self, template: Template, given: dict[str, ast.expr], args: list[ast.expr]
    ) -> Template:
        """The template with its fields filled; nothing if it cannot be."""
        named = given | {str(number): value for number, value in enumerate(args)}
        filled: Template = ()
        count = 0
        for piece in template:
            if isinstance(piece, Hole):
                filled += (piece,)
                continue
            if not fields(piece):
                return ()
            for text, name in fields(piece):
                filled += (text,)
                if name is not None:
                    key = name or str(count)
                    count += not name
                    filled += self._or_hole(named[key])[0] if key in named else (Hole(key),)
        return _joined(filled)


def fields(text: str) -> list[tuple[str, str | None]]:
    """(text, name of the field behind it) as ``str.format`` reads them; empty if it could not."""
    try:
        return [(before, name) for before, name, _, _ in string.Formatter().parse(text)]
    except ValueError:
        return []


def as_format(template: Template) -> Template:
    """A template without holes whose text has fields, read as ``str.format`` would; as it is if it has none."""
    if len(template) != 1 or not isinstance(template[0], str):
        return template
    pieces: Template = ()
    for text, name in fields(template[0]):
        pieces += (text,) if name is None else (text, Hole(name))
    return _joined(pieces) if any(isinstance(piece, Hole) for piece in pieces) else template


def _joined(template: Template) -> Template:
    """Neighbouring texts as one."""
    joined: list[str | Hole] = []
    for piece in template:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return tuple(joined)


def _stripped(template: Template, method: str) -> Template:
    pieces = list(template)
    if pieces and isinstance(pieces[0], str) and method != "rstrip":
        pieces[0] = pieces[0].lstrip()
    if pieces and isinstance(pieces[-1], str) and method != "lstrip":
        pieces[-1] = pieces[-1].rstrip()
    return _joined(tuple(pieces))


def _replaced(template: Template, old: str, new: Template) -> Template:
    pieces: Template = ()
    for piece in template:
        if isinstance(piece, Hole):
            pieces += (piece,)
            continue
        for number, part in enumerate(piece.split(old)):
            pieces += (new if number else ()) + (part,)
    return _joined(pieces)


def _length(template: Template) -> int:
    return sum(len(piece) if isinstance(piece, str) else len(piece.name) for piece in template)
