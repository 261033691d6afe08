"""`prenas bench proxies` as people use it."""

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from bench.tables import SPACE, archs, rows, some_rows, written
from prenas.bench.record import read_record
from prenas.cli import app
from prenas.cost import count
from prenas.proxy.network_scores import NETWORK_SCORES, NetworkScore


def bench(*words: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def shown(*words: object) -> str:
    result = bench("proxies", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*words: object) -> str:
    result = bench(*words)
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "table.json", some_rows(12))


QUICK = ("--space", "digits", "--batch-size", 4, "--scores", "params,entropy,grad_norm")


def test_tables_say_how_well_each_score_predicts_each_column(file: Path) -> None:
    output = shown(file, *QUICK, "--seeds", 2)
    assert "12 architectures of the space digits, 3 scores, 2 seeds" in output
    assert "4 noise images of 8 x 8 pixels: about" in output
    first, second = output.split("first: 12 accuracies")[1].split("second: 12 accuracies")
    for part in (first, second):
        lines = {line.split()[0]: line for line in part.splitlines() if line.strip()}
        assert {"params", "entropy", "grad_norm"} <= lines.keys()
        assert " - " in lines["params"]  # given itself, nothing is left
    assert "among networks of the same embed_dim, depth" in output


def test_one_column_is_enough(file: Path) -> None:
    output = shown(file, *QUICK, "--accuracy", "second")
    assert "first" not in output
    assert "second: 12 accuracies" in output


def test_the_file_holds_what_was_printed_and_is_continued(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found" / "proxies.json"
    printed = shown(file, *QUICK, "--seeds", 2, "--out", out)
    record = read_record(out)
    assert len(record.values["grad_norm"]) == 2
    assert set(record.values) == {"params", "entropy", "grad_norm"}
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert [column.name for column in record.columns] == ["first", "second"]
    entropy = record.columns[0].agreements[1]
    assert entropy.spearman is not None
    assert f"{entropy.spearman.value:+.2f} [{entropy.spearman.low:+.2f}" in printed
    monkeypatch.setitem(
        NETWORK_SCORES, "grad_norm", NetworkScore(lambda *given: pytest.fail("computed again"))
    )
    again = shown(file, *QUICK, "--seeds", 2, "--out", out)
    assert (
        again.partition("pixels: about")[2].partition("\n")[2]
        == (printed.partition("pixels: about")[2].partition("\n")[2])
    )
    # Another choice of scores, or fewer seeds, keep what is there.
    shown(file, *QUICK, "--out", out)
    shown(file, *QUICK[:4], "--scores", "macs", "--out", out)
    kept = read_record(out).values
    assert set(kept) == {"params", "entropy", "grad_norm", "macs"}
    assert kept["grad_norm"] == record.values["grad_norm"]


def test_an_interrupted_bench_goes_on_where_it_was(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "proxies.json", []

    def stopping(network: object, batches: object) -> float:
        calls.append(network)
        if len(calls) == 8:  # two of them are measured beforehand
            raise KeyboardInterrupt
        return float(len(calls))

    monkeypatch.setattr("prenas.cli.benching._SAVE_SECONDS", -1)
    monkeypatch.setitem(NETWORK_SCORES, "grad_norm", NetworkScore(stopping))
    assert bench("proxies", file, *QUICK, "--out", out).exit_code == 130
    assert read_record(out).values["grad_norm"] == ((3.0, 4.0, 5.0, 6.0, 7.0, *[None] * 7),)
    assert read_record(out).columns == ()
    calls[:] = range(100)
    shown(file, *QUICK, "--out", out)
    assert read_record(out).values["grad_norm"][0][:5] == (3.0, 4.0, 5.0, 6.0, 7.0)
    assert min(read_record(out).values["grad_norm"][0][5:]) > 100
    assert len(calls) == 100 + 2 + 7


def test_other_conditions_and_other_files_are_not_overwritten(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "proxies.json"
    shown(file, *QUICK, "--out", out)
    before = out.read_bytes()
    other = ("proxies", file, "--space", "digits", "--batch-size", 6, "--scores", "params")
    assert "batch_size 4, now 6): choose another --out, or replace it with --again" in refused(
        *other, "--out", out
    )
    for more in ((), ("--again",)):
        said = refused("proxies", file, *QUICK, "--out", file, *more)
        assert "it has no schema_version" in said
    assert out.read_bytes() == before
    shown(*other[1:], "--out", out, "--again")
    assert set(read_record(out).values) == {"params"}


def test_a_dry_run_writes_nothing(file: Path, tmp_path: Path) -> None:
    output = shown(file, *QUICK, "--dry-run", "--out", tmp_path / "new" / "proxies.json")
    assert "about" in output
    assert "Spearman" not in output
    assert [*tmp_path.iterdir()] == [file]


def test_a_block_that_is_off_is_warned_of(tmp_path: Path) -> None:
    """As in a supernet that treats one width badly."""
    chosen = archs(45)

    def accuracy(arch: object) -> dict[str, float]:
        params = count(arch, SPACE)["params"]  # type: ignore[arg-type]
        wide = arch.embed_dim == 64  # type: ignore[attr-defined]
        return {"alone": params / 1e5, "shared": params / 1e5 - 40 * wide}

    file = written(tmp_path / "table.json", rows(chosen, accuracy))
    output = shown(file, "--space", "digits", "--scores", "params")
    warnings = [line for line in output.splitlines() if line.startswith("Warning")]
    num = sum(arch.network_options["embed_dim"] == 64 for arch in chosen)
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"Warning: in shared, the {num} architectures with embed_dim 64 are off as a block"
    )
    assert "below the nearest other group, although they are larger" in warnings[0]
    assert "Do not use the column over all groups" in warnings[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scores", "FILE"), "unknown bench 'scores': available: proxies"),
        (
            ("proxies", "FILE", "--scores", "params,zigo"),
            "unknown score 'zigo': did you mean 'zico'",
        ),
        (("proxies", "FILE", "--window", 0), "--window 0 must be a positive share"),
        (("proxies", "FILE", "--space", "digit"), "unknown space 'digit': did you mean 'digits'"),
        (("proxies", "FILE", "--accuracy", "third"), "unknown column of accuracies 'third'"),
        (("proxies", "FILE", "--device", "abacus"), "abacus"),
        (("proxies", "FILE", "--seeds", 10**12), "use 1 to 1,000 seeds"),
        (("proxies", "FILE", "--batch-size", 10**12), "2 to 4,096 images"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    file: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    given = [file if word == "FILE" else word for word in words]
    space = [] if "--space" in words else ["--space", "digits"]
    assert message in refused(*given, *space, "--out", tmp_path / "out" / "proxies.json")
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.big_data
def test_the_published_table_is_read_and_its_trap_is_found(tmp_path: Path) -> None:
    """ViT-Bench-101: numbers that were measured on it by other code."""
    file = Path(os.environ.get("PRENAS_DATA", "")) / "vitbench_autoformer_100.json"
    if not file.exists():
        pytest.skip(f"there is no {file}: set PRENAS_DATA to the folder of the table")
    out = tmp_path / "proxies.json"
    scores = ("--scores", "params,entropy", "--threads", 1)
    output = shown(file, "--space", "tiny", *scores, "--out", out)
    (warning,) = [line for line in output.splitlines() if line.startswith("Warning")]
    assert "in imagenet_super_acc, the 38 architectures with embed_dim 240 are off" in warning
    assert "-0.48 over all and +0.80 without them" in warning
    assert len(json.loads(out.read_text())["rows"]) == 100
