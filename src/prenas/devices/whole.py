"""The subnets of a run, each timed as a whole, beside what the run's latency table predicted."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from prenas import artifacts
from prenas.devices.measuring import Engine, Progress, time_networks
from prenas.latency import Conditions, table_in_use
from prenas.runs.run import Run
from prenas.values import MOST_AMOUNT, Amount, Value


class SubnetTime(Value):
    """The time of one subnet."""

    arch: str
    """Its id."""
    predicted: Amount | None
    """Nanoseconds by the table; None without one for these conditions."""
    nanoseconds: Annotated[int, Field(ge=1, le=MOST_AMOUNT)]
    """As measured."""
    spread: float

    @property
    def error(self) -> float | None:
        """How far the prediction is from the measurement, relative to the latter."""
        return None if self.predicted is None else self.predicted / self.nanoseconds - 1


class RunTimes(Value):
    """The times of all subnets of a run in one engine."""

    conditions: Conditions
    subnets: tuple[SubnetTime, ...]


class _Recorded(Value):
    times: tuple[RunTimes, ...]


def measure_run(
    run: Run, engine: Engine, progress: Progress = lambda what, done, number: None
) -> RunTimes:
    """Times the subnets of a run, and records that in `measured.json`.

    An earlier measurement under the same conditions is replaced.

    Raises:
        ValueError: the search is not finished, or the machine is too busy.
    """
    recorded_times(run)  # a damaged file is refused before anything is timed
    archs, space, table = run.subnets.archs, run.recipe.space, table_in_use()
    is_of_table = table is not None and table.conditions == engine.conditions
    found = RunTimes(
        conditions=engine.conditions,
        subnets=tuple(
            SubnetTime(
                arch=arch.id,
                predicted=table.predict(arch, space.settings) if table and is_of_table else None,
                nanoseconds=round(1e9 * time.median),
                spread=round(time.spread, 4),
            )
            for arch, time in zip(archs, time_networks(space, archs, engine, progress), strict=True)
        ),
    )
    with run.locked():
        others = [one for one in recorded_times(run) if one.conditions != found.conditions]
        recorded = _Recorded(times=(*others, found))
        run.files.write_json(artifacts.MEASURED, recorded.model_dump(mode="json"), recorded)
    return found


def recorded_times(run: Run) -> tuple[RunTimes, ...]:
    """The measurements of the subnets that the run has now.

    Raises:
        ValueError: the file is damaged.
    """
    read = partial(artifacts.parse_json, parse=_Recorded.model_validate)
    found = run.files.read(artifacts.MEASURED, read)
    ids = [arch.id for arch in run.subnets.archs]
    times = found.times if found is not None else ()
    return tuple(one for one in times if [each.arch for each in one.subnets] == ids)
