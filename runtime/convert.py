"""Turn published weights into one checked folder: ``python -m runtime.convert longlive SOURCE -o DIR``.

SOURCE is where the published files lie. The folder holds safetensors in shards, the sizes as JSON and a manifest with the
sha256 of every file; it is written beside its place and moved there when it is whole. Exit codes: 0 done, 1 the machine
failed, 2 the call or a file was wrong, 130 and 143 stopped. Every error is one line on stderr.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.__main__ import Terminated, complain, say, stopped_by_sigterm
from runtime.arguments import Parser
from runtime.settings import weights_home


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m runtime.convert",
        description="Turn published weights into one checked folder that the runtime loads.",
        epilog=f"NAME is one of {', '.join(known_conversions())}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="a published generator or reward")
    add("source", metavar="SOURCE", help="the folder or file it was published as")
    add("-o", "--output", metavar="DIR", help=f"default: {weights_home()}/NAME")
    text = "what weights are stored in (default: as published)"
    add("--dtype", choices=("bfloat16", "float32"), help=text)
    add("--lora", metavar="FILE", help="an adapter to merge that does not lie in SOURCE")
    text = "compare SOURCE with its manifest before, if it has one, and DIR with its own after"
    add("--verify", action="store_true", help=text)
    add("--quiet", action="store_true", help="no progress and no report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    try:
        with stopped_by_sigterm():
            run(build_parser().parse_args(argv))
        return 0
    except KeyboardInterrupt as stop:
        complain("stopped", "nothing was written")
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        known = isinstance(error, (ValueError, RuntimeError, OSError, ImportError))
        complain("error", error if known else f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, ValueError) else 1


def run(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from runtime.shards import FolderWriter, verify

    convert = find_conversion(options.name, options.lora)
    source = Path(options.source).expanduser()
    target = Path(options.output).expanduser() if options.output else weights_home() / options.name
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if options.verify and source.is_dir():
        verify(source)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with tqdm(unit="B", unit_scale=True, desc=options.name, disable=options.quiet or None) as bar:
        writer = FolderWriter(target, dtype, bar.update)
        with writer:
            writer.planned = lambda count: bar.reset(total=count)
            convert(source, writer)
    if options.verify:
        verify(target)
    if not options.quiet:
        files = [path for path in target.iterdir() if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 2**30
        say(f"{options.name}  {target} ({size:.2f} GiB in {len(files)} files)")


def known_conversions() -> dict[str, Callable[[Path, Any], None]]:
    """By name: generators, then rewards."""
    from runtime.generators import published as generators
    from runtime.rewards import published as rewards

    return {**generators.CONVERSIONS, **rewards.CONVERSIONS}


def find_conversion(name: str, lora: str | None) -> Callable[[Path, Any], None]:
    """The conversion called ``name``, with the adapter that was asked for. ValueError for an unknown name."""
    from runtime.generators.published import Checkpoint

    known = known_conversions()
    if name not in known:
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"{name!r}: no conversion of that name; known: {', '.join(known)}{hint}")
    convert = known[name]
    if lora is None:
        return convert
    if not isinstance(convert, Checkpoint):
        raise ValueError(f"--lora: {name} takes no adapter")
    adapter = Path(lora).expanduser()
    return lambda source, out: convert(source, out, adapter)


if __name__ == "__main__":
    sys.exit(main())
