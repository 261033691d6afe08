"""The files in examples/cluster: shells and parsers accept them, and so does the command line."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from torch.distributed.run import get_args_parser
from typer.main import get_command

from prenas.cli import app
from prenas.recipe.catalogue import get_recipe

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "cluster"


def scripts() -> dict[str, str]:
    """File -> the shell script in it."""
    task = YAML(typ="safe").load(FOLDER / "skypilot.yaml")
    return {"slurm.sh": (FOLDER / "slurm.sh").read_text(), "skypilot.yaml": task["run"]}


def launched(script: str) -> list[str]:
    """The words after `torchrun`."""
    joined = script.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if re.search(r"\btorchrun\b", line)]
    return shlex.split(line.partition("torchrun ")[2])


def test_every_file_is_checked() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(scripts())


@pytest.mark.parametrize("name", scripts())
def test_bash_reads_the_script(name: str) -> None:
    subprocess.run(["bash", "-n"], input=scripts()[name], text=True, check=True)


@pytest.mark.parametrize("name", scripts())
def test_torchrun_and_prenas_know_every_option(name: str) -> None:
    numbers = {"--nnodes": "2", "--nproc_per_node": "8"}
    words = [
        f"{option}={numbers[option]}" if (option := word.split("=")[0]) in numbers else word
        for word in launched(scripts()[name])
    ]
    launcher = get_args_parser().parse_args(words)
    assert (launcher.module, launcher.training_script) == (True, "prenas")
    assert launcher.max_restarts > 0
    assert launcher.rdzv_backend == "c10d"
    command, *rest = launcher.training_script_args
    context = get_command(app).commands[command].make_context(command, rest)  # type: ignore[attr-defined]
    assert context.params["out"]
    assert context.params["data"]


def test_both_start_the_same_command() -> None:
    """Whatever the values are."""
    first, second = (
        [re.sub(r".*[$/].*", "...", word) for word in launched(text)[-6:]]
        for text in scripts().values()
    )
    assert first == second == ["run", "...", "--data", "...", "--out", "..."]


def test_what_is_named_exists() -> None:
    """Recipes, and variables that SLURM and SkyPilot set."""
    task = YAML(typ="safe").load(FOLDER / "skypilot.yaml")
    get_recipe(task["envs"]["RECIPE"])
    set_by = {
        "slurm.sh": {"SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_JOB_ID"},
        "skypilot.yaml": {
            "SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE", *task["envs"],
        },
    }  # fmt: skip
    for name, text in scripts().items():
        assert set(re.findall(r"\$\{?([A-Z][A-Z_]+)", text)) == set_by[name]
