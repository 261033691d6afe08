"""Several processes go on only once all of them see what the first one wrote."""

from pathlib import Path

import pytest

from prenas import pipeline
from prenas.processes import ALONE, Processes
from prenas.runs.run import Run
from prenas.steps import choosing
from training.runs import mini_recipe, own_data


class Recorded(Processes):
    """Two processes, as one of them sees them: the other one gathers these numbers."""

    others: list[float]

    def gathered(self, number: float) -> list[float]:
        numbers = [self.others.pop(0), self.others.pop(0)]
        numbers[self.rank] = number
        return numbers


def process(rank: int, others: list[float]) -> Recorded:
    found = Recorded(rank, 2)
    found.others = others
    return found


@pytest.fixture
def searched(tmp_path: Path) -> Run:
    pipeline.search(mini_recipe(), tmp_path / "run", data=own_data())
    return Run(tmp_path / "run")


def test_a_folder_on_a_shared_disk_is_seen(searched: Run, tmp_path: Path) -> None:
    state = choosing._state_of(searched)
    assert state > 0
    assert choosing._seen_by_all(searched, process(1, [state] * 4)) == searched.preferred
    assert choosing._seen_by_all(searched, ALONE) == searched.preferred
    assert choosing._state_of(Run(tmp_path / "elsewhere")) == -1


@pytest.mark.parametrize("state", [-1, 7])
@pytest.mark.parametrize("rank", [0, 1])
def test_folders_on_separate_disks_are_refused_by_all(
    rank: int, state: int, searched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a run, or with another run of before."""
    monkeypatch.setattr(choosing, "_DELAY_OF_DISKS", 0.0)
    recorded = choosing._state_of(searched)
    own = searched if rank == 0 else Run(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"processes of this run, 1 do not see .*all machines share"
    ):
        choosing._seen_by_all(own, process(rank, [recorded, state] * 2))


def test_a_file_that_is_seen_late_is_waited_for(
    searched: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = choosing._state_of(searched)
    states = iter([-1, -1, -1, recorded, recorded])
    monkeypatch.setattr(choosing, "_state_of", lambda run: next(states))
    assert choosing._seen_by_all(searched, process(1, [recorded, 0] * 2)) == searched.preferred
