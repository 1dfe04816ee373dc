"""Does test-time scaling help? ``python -m runtime.bench.quality`` makes the paper's tables on a world with ground truth.

    python -m runtime.bench.quality --quick                            five minutes on two cores
    python -m runtime.bench.quality --seconds 5 30 --report out.html   the tables, curves and strips
    python -m runtime.bench.quality --scaling                          quality against candidates
    python -m runtime.bench.quality --sweep noise.beta                 on the tuning prompts

Exit codes: 0 done, 1 the machine failed, 2 the call was wrong, 130 and 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.__main__ import Terminated, complain, stopped_by_sigterm
from runtime.bench.quality.options import BATCH, REAL, changes, parse, workers
from runtime.bench.quality.plan import Plan, jobs, under_all_names, weight
from runtime.bench.quality.row import Row
from runtime.bench.quality.store import Store, read, tuning_rows
from runtime.bench.quality.worlds import WORLDS, Finishing, Remarking, Wishes, World, load_world

TABLES = "tables.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with stopped_by_sigterm():
            run(parse(arguments))
        return 0
    except KeyboardInterrupt as stop:
        complain("stopped", stop if stop.args else "what is done is kept; the same command goes on")
        return 143 if isinstance(stop, Terminated) else 130
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in arguments:
            raise
        complain("error", error)
        return 2 if isinstance(error, ValueError) else 1


def run(args: Any) -> None:
    header, rows = read(args.out) if args.tables_only else make(args)
    rows, remarks = finished(args, header, rows)
    show(header, rows, args.out, remarks)
    if args.report:
        from runtime.bench.quality import report

        report.write(args.out, [*rows, *tuning_rows(args.out)], header, args.report)
        print(f"report: {args.report}")


def make(args: Any) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows of the run, once every video that was asked for is there."""
    from runtime.bench.quality.header import header

    wishes = wished(args)
    world = load_world(args.world, wishes)
    plan = planned(args, world, wishes)
    store = Store(args.out, header(plan, world))
    with contextlib.closing(store):
        check_texts(store.rows, plan)
        fill(plan, store, world)
        return store.header, store.rows


def wished(args: Any) -> Wishes:
    return Wishes(
        folder=args.out,
        split=args.split,
        prompts_file=args.prompts_file,
        device=args.device or "cpu",
        preset=args.preset,
        changes=changes(args),
        vbench_results=args.vbench_results,
        vbench_python=args.vbench_python,
        vbench_long=args.vbench_long,
        look_only=args.tables_only,
    )


def finished(args: Any, header: dict[str, Any], rows: list[Row]) -> tuple[list[Row], str]:
    """The rows with what is known of all videos together, and what the world says under the tables."""
    if header["world"] not in REAL or not rows:
        return rows, ""
    world = load_world(header["world"], wished(args))
    assert isinstance(world, Finishing) and isinstance(world, Remarking)
    rows = world.finish(rows)
    weights = ", ".join(f"{name} ({digest})" for name, digest in header["weights"].items())
    return rows, world.remarks(rows, f"weights {weights}; {made_by(header)}")


def planned(args: Any, world: World, wishes: Wishes) -> Plan:
    """All that is to be made. ValueError before anything is loaded, for a method or setting that does not exist."""
    plan = Plan(
        world=WORLDS[args.world],
        name=world.name if args.split == "held-out" else f"{world.name}-{args.split}",
        wishes=wishes,
        texts=tuple(world.texts(args.prompts)),
        methods=args.methods,
        seconds=args.seconds,
        seeds=args.seeds,
        changes={**world.changes, **changes(args)},
        batch=args.batch or (BATCH if args.world == "sprites" else 1),
        workers=1,
        keep=args.keep,
    )
    for method in plan.methods:
        plan.settings(method, plan.seconds[0])
    return plan.with_workers(workers(args.workers, plan.base.run.device))


def check_texts(rows: Sequence[Row], plan: Plan) -> None:
    """ValueError for rows of other prompts under the same numbers."""
    for row in rows:
        if row.key.prompt < len(plan.texts) and row.text != plan.texts[row.key.prompt]:
            raise ValueError(
                f"{plan.wishes.folder}: prompt {row.key.prompt} was {row.text[:60]!r} there and is "
                f"{plan.texts[row.key.prompt][:60]!r} now; name another --out"
            )


def fill(plan: Plan, store: Store, world: World) -> None:
    """Make what is missing, and keep it batch by batch."""
    from tqdm import tqdm

    store.add(under_all_names(plan, store.rows))
    work = jobs(plan, {row.key for row in store.rows})
    if not work:
        return
    from runtime.bench.quality.run import made  # heavy

    total = sum(len(job.prompts) for job in work)
    complain("making", f"{total} videos in {len(work)} batches, {plan.workers} at a time")
    shape = "{desc} {percentage:3.0f} % |{bar:30}| {elapsed}, {remaining} left"
    done = 0
    with (
        contextlib.closing(made(plan, work, world)) as batches,
        tqdm(
            total=sum(weight(plan, job) for job in work), bar_format=shape, desc=f"0/{total}"
        ) as bar,
    ):
        for job, rows in batches:
            store.add(rows)
            store.add(under_all_names(plan, rows))
            done += len(rows)
            bar.set_description(
                f"{done}/{total} videos, {job.seconds:g} s, {job.method}", refresh=False
            )
            bar.update(weight(plan, job))


def made_by(header: dict[str, Any]) -> str:
    """What made the rows, in one line."""
    where = header["made"]
    return f"`{where['command']}`, commit {where['commit']}, {where['gpu'] or where['cpu']}, torch {where['torch']}"


def show(header: dict[str, Any], rows: Sequence[Row], folder: Path, remarks: str) -> None:
    """Print the tables and what the world says under them, and write both beside the rows."""
    from runtime.bench.quality import tables

    made = tables.make(rows)
    text = tables.document(made, f"{made_by(header)}.")
    (folder / TABLES).write_text(f"{text}\n{remarks}\n" if remarks else text, encoding="utf-8")
    for table in made:
        print(tables.as_text(table), end="\n\n")
    print(
        tables.LEGEND
        if made
        else "Nothing to compare yet: want two methods of a table with the same videos."
    )
    if remarks:
        print(f"\n{remarks}\n")
    print(f"rows and tables: {folder}")


if __name__ == "__main__":
    sys.exit(main())
