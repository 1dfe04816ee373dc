"""Reads what a pickle says without doing any of it: a stack machine in which nothing can be called or imported.

A pickle is a program; loading one runs whatever its author wrote. Here every name stays a ``Name``, every call a ``Made`` that
remembers what would have been called and with what, and every state that would have been set is kept beside it. Only what
the format itself builds (numbers, strings, lists, tuples, dictionaries, sets) becomes real.

Raises  ValueError for a program that is cut short, too long or broken, with the position of the step.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 64 << 20
MAX_STEPS = 20_000_000


@dataclass(frozen=True, slots=True)
class Name:
    """A global that the program mentions. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a call would have made: its callee, its arguments, and the states that would have been set on it."""

    what: Any
    arguments: Any
    states: list[Any] = field(default_factory=list)

    @property
    def state(self) -> Any:
        """The first state: an object has one."""
        return self.states[0] if self.states else None

    def __str__(self) -> str:
        return f"{self.what}(...)" if isinstance(self.what, Name) else "an object made of no name"


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something outside the pickle, by the identity that it gives; torch keeps numbers there."""

    identity: Any


# What may be hashed: a tuple of tuples of tuples would be hashed to its bottom, and overflow the interpreter's stack.
KEYS = (str, bytes, int, float, type(None), Name)

# callee, arguments -> what stands for the result, or None to leave a ``Made``
Rebuild = Callable[[Name, Any], Any]


def run(program: bytes, rebuild: Rebuild = lambda name, arguments: None) -> Any:
    """The value that ``program`` ends with. ``rebuild`` may turn calls of names it knows into values of its own."""
    if len(program) > MAX_BYTES:
        raise ValueError(f"pickle: want at most {MAX_BYTES} bytes, got {len(program)}")
    machine = Machine(rebuild)
    place: int | None = 0
    try:
        for steps, (opcode, argument, at) in enumerate(pickletools.genops(program)):
            place = at
            if steps > MAX_STEPS:
                raise ValueError(f"want at most {MAX_STEPS} steps")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = "takes what is not there" if isinstance(error, (IndexError, KeyError)) else error
        raise ValueError(f"pickle: byte {place}: {reason}") from None
    raise ValueError("pickle: ends without a value")


class Machine:
    """The stack, the marks and the memo. One method for every kind of step, none of which calls what it holds."""

    def __init__(self, rebuild: Rebuild) -> None:
        self.rebuild = rebuild
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under a mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in IGNORED:
            return
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in GETS:
            self.stack.append(self.memo[int(argument)])
        elif name in PUTS:
            self.memo[int(argument)] = self.stack[-1]
        elif name in STEPS:
            STEPS[name](self, argument)
        else:
            raise ValueError(f"step {name} is none that torch writes")

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, argument: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self, argument: Any) -> None:
        self.since_mark()

    def duplicate(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        self.stack[len(self.stack) - count :] = [tuple(self._top(count))]

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        return self.stack[len(self.stack) - count :]

    def gather(self, kind: Callable[[list[Any]], Any]) -> None:
        items = self.since_mark()
        self.stack.append(kind(items))

    def extend(self, items: list[Any]) -> None:
        """Into a list or a set; what would go into anything else is dropped."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(item for item in items if isinstance(item, KEYS))
        elif not isinstance(target, Made):
            raise ValueError(f"cannot add to {type(target).__name__}")

    def assign(self, items: list[Any]) -> None:
        """Into a dictionary, under plain keys; what would go anywhere else is dropped."""
        target = self.stack[-1]
        if len(items) % 2:
            raise ValueError("a key without a value")
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update(pair for pair in pairs if isinstance(pair[0], KEYS))
        elif not isinstance(target, Made):
            raise ValueError(f"cannot assign into {type(target).__name__}")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global without a name")
        self.stack.append(Name(module, name))

    def make(self, what: Any, arguments: Any) -> None:
        """A call, that is: a note of it."""
        value = self.rebuild(what, arguments) if isinstance(what, Name) else None
        self.stack.append(Made(what, arguments) if value is None else value)

    def build(self, argument: Any) -> None:
        """A state, that is: a note of it. Values of the format and of ``rebuild`` take none."""
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Made):
            target.states.append(state)


def _global(machine: Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.name(module, name)


def _stack_global(machine: Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _reduce(machine: Machine, argument: Any) -> None:
    arguments, what = machine.pop(), machine.pop()
    machine.make(what, arguments)


def _new_with_keywords(machine: Machine, argument: Any) -> None:
    keywords, arguments, what = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(Made(what, (arguments, keywords)))


def _inst(machine: Machine, argument: str) -> None:
    items = tuple(machine.since_mark())
    _global(machine, argument)
    machine.make(machine.pop(), items)


def _obj(machine: Machine, argument: Any) -> None:
    items = machine.since_mark()
    machine.make(items[0], tuple(items[1:]))


def _fill(machine: Machine, empty: Any, add: Callable[[Machine, list[Any]], None]) -> None:
    items = machine.since_mark()
    machine.stack.append(empty)
    add(machine, items)


def _pair(machine: Machine) -> list[Any]:
    value, key = machine.pop(), machine.pop()
    return [key, value]


IGNORED = {"PROTO", "FRAME"}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
GETS = {"GET", "BINGET", "LONG_BINGET"}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    "POP": lambda machine, argument: machine.pop() and None,
    "POP_MARK": Machine.pop_mark,
    "DUP": Machine.duplicate,
    "MEMOIZE": Machine.memoize,
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "TUPLE": lambda machine, argument: machine.gather(tuple),
    "LIST": lambda machine, argument: machine.gather(list),
    "FROZENSET": lambda machine, argument: _fill(machine, set(), Machine.extend),
    "DICT": lambda machine, argument: _fill(machine, {}, Machine.assign),
    "APPEND": lambda machine, argument: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, argument: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, argument: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, argument: machine.assign(_pair(machine)),
    "SETITEMS": lambda machine, argument: machine.assign(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords,
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": Machine.build,
    "BINPERSID": lambda machine, argument: machine.stack.append(Foreign(machine.pop())),
}
