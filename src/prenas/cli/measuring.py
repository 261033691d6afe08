"""`prenas measure`: latency tables of spaces, and the times of the subnets of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress as Bar

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.tables import print_table, print_times
from prenas.latency import LATENCY, LatencyTable, read_table, use_table, use_table_of, write_table
from prenas.values import plural

if TYPE_CHECKING:
    from prenas.devices.measuring import Engine, Measurement
    from prenas.families.base import SearchSpace

_NOTABLE_PACE = 0.03


def use_latency(file: Path | None, out: Path | None, *, elsewhere: bool) -> None:
    """Counts latencies with a table, or with that of a run that is continued.

    Args:
        out: the folder of the run.
        elsewhere: also take a table of another machine, engine version or Python package.

    Raises:
        ValueError: the table was measured elsewhere.
    """
    from prenas.devices.measuring import engine_of

    if file is None:
        if out is not None:
            use_table_of(out)
        return
    table = read_table(file)
    theirs = table.conditions
    if not elsewhere:
        here = engine_of(theirs).conditions
        if theirs != here:
            raise ValueError(
                f"{file} was measured under other conditions ({_differing(theirs, here)}): measure "
                "here with `prenas measure`, or choose for that device with --latency-elsewhere"
            )
    use_table(table)


def _differing(theirs: object, ours: object) -> str:
    pairs = zip(theirs, ours, strict=True)  # type: ignore[call-overload]
    return "; ".join(
        f"{name}: {one}, here {other}" for (name, one), (_, other) in pairs if one != other
    )


def space_to_measure(
    name: str | None,
    space: str | None,
    data: Sequence[str],
    overrides: Sequence[str],
    *,
    start_from: str | None,
    image_size: int | None,
) -> SearchSpace:
    """The space that a search with these options would have.

    Raises:
        ValueError: there is none of this name, or the options do not go together.
    """
    from prenas.cli.parsing import chosen_recipe
    from prenas.data import with_data
    from prenas.families import all_spaces
    from prenas.recipe import searching_recipe, with_overrides
    from prenas.recipe.catalogue import RECIPES
    from prenas.recipe.space_file import find_space, names_a_space_file
    from prenas.sources.cutting import cut_plan
    from prenas.sources.transfer import read_source
    from prenas.values import unknown_name

    if start_from is not None:
        if name is not None or space is not None:
            raise ValueError("--from makes a space of its own: leave out the recipe and --space")
        source = read_source(start_from)
        plan = cut_plan(source, data, ["macs=100%"], image_size=image_size, overrides=overrides)
        return plan.recipe.space
    if image_size is not None:
        raise ValueError(
            f"--image-size {image_size} needs --from; otherwise write --set "
            f"space.settings.image_size={image_size}"
        )
    if name in RECIPES:
        return chosen_recipe(name, space, data, overrides, None, None).space
    text = space if space is not None else name
    if text is None:
        raise ValueError(
            "name what to measure: a recipe, a space, a run, or --from SOURCE with --data"
        )
    if text not in all_spaces() and not names_a_space_file(text):
        raise unknown_name("recipe, space or run", text, {*RECIPES, *all_spaces()})
    recipe = searching_recipe(find_space(text), ["params=1G"])  # budgets matter only to a search
    if data:
        recipe = with_data(recipe, data)
    return with_overrides(recipe, overrides).space


def measure_space(
    space: SearchSpace, engines: Sequence[Engine], out: Path | None, *, again: bool, dry_run: bool
) -> None:
    """Measures the table of a space in every engine, writes it, and says how good it is."""
    from prenas.devices.measuring import measurement

    files = [_file(space, engine, out, len(engines)) for engine in engines]
    plans = [measurement(space, engine) for engine in engines]
    done: list[tuple[Path, LatencyTable]] = []
    for file, plan in zip(files, plans, strict=True):
        earlier = _earlier(file, plan, again=again)
        if earlier is not None:
            console.print(f"{file} holds these times already; --again measures once more")
            done.append((file, earlier))
            continue
        artifacts.require_writable(file.parent)
        with console.status(f"Estimating how long {plan.engine.conditions.summary} takes ..."):
            seconds = plan.seconds()
        console.print(
            f"{plan.engine.conditions.summary}: {len(plan.layers)} kinds of layers and "
            f"{len(plan.networks)} networks of {space.name}, about {_in_words(seconds)}",
            soft_wrap=True,
        )
        if dry_run:
            continue
        with Bar(console=console, transient=True) as bar:
            tasks = {what: bar.add_task(what, total=None) for what in ("layers", "networks")}
            table = plan.measure(
                lambda what, at, of, bar=bar, tasks=tasks: bar.update(  # type: ignore[misc]
                    tasks[what], completed=at, total=of
                )
            )
        write_table(file, table)
        done.append((file, table))
    if done:
        _print_tables(space, done)


def _file(space: SearchSpace, engine: Engine, out: Path | None, number: int) -> Path:
    if out is None:
        runs = engine.conditions.engine_in_words.replace(" ", "-")
        return Path(f"latency-{space.name.replace('/', '-')}-{runs}.json")
    if number > 1:
        raise ValueError(
            f"{out} is one file, but {number} engines are measured: leave out --out, or measure "
            "one engine"
        )
    return out


def _earlier(file: Path, plan: Measurement, *, again: bool) -> LatencyTable | None:
    """The table that the file holds already; None if it is to be measured.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.exists():
        return None
    table = read_table(file)
    if again:
        return None
    if table.conditions != plan.engine.conditions:
        lacking = f"under other conditions ({table.conditions.summary}; {table.conditions.machine})"
    elif not plan.is_answered_by(table):
        lacking = (
            f"and not all of {plan.space.name} as it is asked for (other layers, image size or "
            "number of classes)"
        )
    else:
        return table
    raise ValueError(
        f"{file} holds the times of {table.space} {lacking}: choose another --out, or replace it "
        "with --again. Nothing was written"
    )


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _print_tables(space: SearchSpace, done: Sequence[tuple[Path, LatencyTable]]) -> None:
    from prenas.cost import bounded_axis

    ends = []
    for _, table in done:
        use_table(table)
        cell = bounded_axis(LATENCY).cell
        nets = (space.smallest, space.largest)
        ends.append([cell(table.predict(arch, space.settings)) for arch in nets])
    use_table(None)
    print_table(
        f"{space.name}: times by the tables, and how they predict whole networks left out of them",
        [
            "file",
            "engine",
            "smallest, ms",
            "largest, ms",
            "median error, %",
            "worst, %",
            "rank\ncorrelation",
            "noise, %",
        ],
        [
            (
                str(file),
                table.conditions.engine_in_words,
                *both,
                f"{100 * table.fit.median_error:.1f}",
                f"{100 * table.fit.worst_error:.1f}",
                "-" if table.fit.rank_correlation is None else f"{table.fit.rank_correlation:.3f}",
                f"{100 * table.fit.noise_floor:.1f}",
            )
            for (file, table), both in zip(done, ends, strict=True)
        ],
    )
    for file, table in done:
        if table.fit.pace is not None and table.fit.pace > _NOTABLE_PACE:
            console.print(
                f"{file}: the pace of this machine varied by {100 * table.fit.pace:.0f} % "
                "meanwhile; times are those at its typical pace",
                soft_wrap=True,
            )
    file, table = done[0]
    console.print(
        f"Use one as `prenas search ... --latency {file} --budget latency=10ms`", soft_wrap=True
    )


def measure_subnets(folder: Path, engines: Sequence[Engine], *, dry_run: bool) -> None:
    """Times the subnets of a run in every engine, and prints the times."""
    from prenas.devices.measuring import seconds_for_networks
    from prenas.devices.whole import measure_run
    from prenas.runs.run import Run

    run = Run(folder, device="cpu")
    if dry_run:
        archs = run.subnets.archs
        for engine in engines:
            seconds = seconds_for_networks(run.recipe.space, archs, engine)
            console.print(
                f"{engine.conditions.summary}: {plural(len(archs), 'subnet')} of {folder}, about "
                f"{_in_words(seconds)}",
                soft_wrap=True,
            )
        return
    for engine in engines:
        with console.status(f"Measuring: {engine.conditions.summary} ..."):
            measure_run(run, engine)
    print_times(run)
