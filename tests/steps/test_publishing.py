"""Publishing a model: what the folder and its card hold, and that nothing is replaced unasked."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import ModelCard, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

import prenas
from edits import write_edited
from models.handed_over import model_of
from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation
from prenas.models import origin
from prenas.models.choice import pick
from prenas.recipe.fields import OriginRecipe, TeacherRecipe
from prenas.selection.preferred import Imported
from prenas.steps.publishing import without_folders
from training.runs import contents

pytest_plugins = ["training.runs", "sources.cut_runs"]

FILES = {"README.md", "arch.json", "config.json", "model.safetensors"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the folder ----------------------------------------------------------------------------------


def test_the_best_subnet_of_a_run_is_published(
    finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    best = pick(finished_rows, {})
    done = prenas.push(finished, "me/digits", to=tmp_path / "hub")
    assert done.model == finished / "subnets" / f"{best:02d}"
    assert Path(done.place) == tmp_path / "hub"
    assert names_in(tmp_path / "hub") == FILES
    for name in ("model.safetensors", "arch.json", "config.json"):
        assert (tmp_path / "hub" / name).read_bytes() == (done.model / name).read_bytes()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = prenas.load(done.model).network(images)
    assert torch.equal(prenas.load(tmp_path / "hub").network(images), expected)
    network = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(network(images), expected)


def test_the_card_states_what_the_run_knows(
    finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    prenas.push(finished, "me/digits", index=0, to=tmp_path / "hub")
    row, run = finished_rows[0], prenas.Run(finished)
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.library_name, card.data.license) == ("timm", None)
    for result in card.data.eval_results or ():
        assert result.dataset_split is not None
        expected = row.splits[result.dataset_split].top1
        assert result.metric_value == pytest.approx(expected, abs=1e-4)
    assert len(card.data.eval_results or ()) == len(row.splits) == 2
    text = card.text
    assert f"{row.costs['params']:,} parameters" in text
    for metrics in row.splits.values():
        assert f"{100 * metrics.top1:.2f} | {metrics.loss:.3f} |" in text
        assert metrics.per_class is not None
        for label, (right, number) in enumerate(metrics.per_class):
            assert f"{100 * right / number:.2f} ({number})" in text, label
    assert run.preferred.budgets[0] in text.replace("\\", "")
    images = run.images.recorded
    assert images is not None
    assert f"train {images.num_images['train']:,}" in text
    assert f"`{images.fingerprint}`" in text
    described = json.loads((finished / "subnets" / "00" / "arch.json").read_text())
    assert "| recipe | mini |" in text
    assert f"| commit of prenas | {described['provenance']['commit'] or 'not recorded'} |" in text
    assert '"name": "mini"' in text
    assert "Trained from random weights, so there are no source weights with a licence." in text
    assert 'timm.create_model("hf-hub:me/digits", pretrained=True)' in text


@pytest.mark.parametrize(
    "folder", ["/home/me/secret/", "/home/my secret pictures/x/", "../secret/", "secret/a/"]
)
def test_folders_of_this_machine_are_not_published(folder: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    path = model / "arch.json"
    source = {"name": f"timm/resnet18={folder}r18.pth", "origin": "https://a.org/b/c"}
    document = artifacts.read_json(path)
    artifacts.write_json(path, {**document, "provenance": {"source": source}})
    prenas.push(model, "me/animals", to=tmp_path / "hub")
    for name in ("README.md", "arch.json"):
        text = (tmp_path / "hub" / name).read_text()
        assert "secret" not in text
        assert "timm/resnet18=r18.pth" in text
        assert "https://a.org/b/c" in text
    assert "are those that timm states for the model." in (tmp_path / "hub/README.md").read_text()
    assert torch.equal(
        prenas.load(tmp_path / "hub").network(torch.ones(1, 3, 8, 8)),
        prenas.load(model).network(torch.ones(1, 3, 8, 8)),
    )


def test_a_cut_is_published_without_the_folders_of_its_run(
    cut_run: Path, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    prenas.push(cut_run, "me/insects", index=1, to=tmp_path / "hub")
    assert prenas.load(tmp_path / "hub")
    for name in ("README.md", "arch.json"):
        text = (tmp_path / "hub" / name).read_text()
        assert f"timm/test_resnet={cut_weights.name}" in text
        for place in (cut_weights, cut_pictures):
            assert place.parent.name not in text
    assert f'"root": "{cut_pictures.name}"' in (tmp_path / "hub/README.md").read_text()


def test_paths_in_a_recipe_lose_their_folders(cut_run: Path) -> None:
    preferred = prenas.Run(cut_run).preferred
    data, training = preferred.recipe.data, preferred.recipe.training
    source = preferred.recipe.source
    assert data is not None
    assert training is not None
    assert source is not None
    teacher = TeacherRecipe(name="runs/my secret/source", weights="secret/w.pth")
    rival = OriginRecipe(name="timm/resnet18=/my secret/r.pth", sha256="0")
    recipe = preferred.recipe.model_copy(
        update={
            "data": data.model_copy(update={"root": "my secret/a b", "validation": 0.2}),
            "training": training.model_copy(update={"teacher": teacher}),
            "source": source.model_copy(update={"name": "secret/lr=3/00", "rivals": (rival,)}),
            "space": preferred.recipe.space.model_copy(
                update={"name": "timm/test_resnet=my secret/w.pth"}
            ),
        }
    )
    imported = Imported(file="/secret x/tiny.pth", sha256="0", subnets="given")
    found = without_folders(preferred.model_copy(update={"recipe": recipe, "imported": imported}))
    assert "secret" not in found.model_dump_json()
    assert found.imported is not None
    assert found.imported.file == "tiny.pth"
    shown = found.recipe.model_dump()
    assert (shown["data"]["root"], shown["data"]["validation"]) == ("a b", 0.2)
    assert (shown["training"]["teacher"]["name"], shown["source"]["name"]) == ("source", "00")
    assert shown["source"]["rivals"][0]["name"] == "timm/resnet18=r.pth"


def test_a_model_of_a_run_is_found_by_its_architecture(
    finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    """Its folder may have another name, or the number of another subnet."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "subnets")
    for name in ("best", "01"):
        made = prenas.specialize(run, index=0, to=run / "subnets" / name)
        prenas.push(made, "me/digits", to=tmp_path / name)
        text = (tmp_path / name / "README.md").read_text()
        assert f"{100 * finished_rows[0].splits['test'].top1:.2f} | " in text
        assert prenas.Run(run).preferred.budgets[0] in text.replace("\\", "")
    with pytest.raises(ValueError, match="01 holds another subnet than number 1: move it"):
        prenas.specialize(run, index=1)


@pytest.mark.parametrize(
    ("licence", "of_hub", "name"),
    [("mit", "mit", None), ("Apache-2.0", "apache-2.0", None), ("secret-1", "other", "secret-1")],
)
def test_the_licence_of_the_source_is_stated(
    licence: str, of_hub: str, name: str | None, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model")
    path = model / "arch.json"
    source = {"name": "timm/resnet18", "licence": licence, "origin": "https://example.org/r18"}
    write_edited(path, {**json.loads(path.read_text()), "provenance": {"source": source}})
    done = prenas.push(model, "me/animals", to=tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.license, card.data.to_dict().get("license_name")) == (of_hub, name)
    assert f"Licence of these source weights: {licence}." in card.text
    assert "Made from the weights of timm/resnet18, from https://example.org/r18." in card.text
    assert done.notes == [
        "the model lies in no run, so budget, data and classes are not on its card",
        "the commit of prenas is not known",
    ]


def test_a_model_of_an_earlier_version_gets_its_config(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    before = (model / "config.json").read_bytes()
    (model / "config.json").unlink()
    prenas.push(model, "me/animals", to=tmp_path / "hub")
    assert (tmp_path / "hub" / "config.json").read_bytes() == before
    assert not (model / "config.json").exists()


# --- what is in the way --------------------------------------------------------------------------


def test_nothing_is_replaced_without_a_word(tmp_path: Path) -> None:
    model, hub = model_of(tmp_path / "model"), tmp_path / "hub"
    hub.mkdir()
    (hub / "README.md").write_text("mine")
    (hub / "notes.txt").write_text("mine too")
    before = contents(hub)
    with pytest.raises(ValueError, match="is not empty: choose another --to, or give --replace"):
        prenas.push(model, "me/animals", to=hub)
    assert contents(hub) == before
    prenas.push(model, "me/animals", to=hub, replace=True)
    assert names_in(hub) == {*FILES, "notes.txt"}
    assert (hub / "notes.txt").read_text() == "mine too"
    assert "library_name: timm" in (hub / "README.md").read_text()
    assert names_in(tmp_path) == {"model", "hub"}


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("model", {"repo": "me/my animals"}, "Repo id must use alphanumeric chars"),
        ("model", {"index": 0}, "is one model, of which no subnet can be chosen"),
        ("nothing", {}, "arch.json does not exist: give a model folder"),
        ("model", {"to": "model/arch.json"}, "arch.json is not a folder: choose another --to"),
        ("model", {"to": "model/arch.json/hub"}, "cannot write to .*arch.json"),
        ("model", {"to": "run", "replace": True}, "run is a run, or a model in one, which the"),
        ("model", {"to": "run/subnets/00", "replace": True}, "00 is a run, or a model in one"),
    ],
)
def test_a_wrong_request_writes_nothing(
    target: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model_of(tmp_path / "model")
    model_of(tmp_path / "run/subnets/00")
    (tmp_path / "run/recipe.json").write_text("{}")
    before = contents(tmp_path)
    given = {"repo": "me/animals", "to": "hub", **options}
    given["to"] = tmp_path / given["to"]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        prenas.push(tmp_path / target, **given)
    assert contents(tmp_path) == before


def test_damaged_weights_are_not_published(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="does not match its digest"):
        prenas.push(model, "me/animals", to=tmp_path / "hub")
    assert names_in(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("provenance", "where"),
    [
        ({"versions": "0.1.0"}, "versions"),
        ({"commit": {"prenas": "0.1.0"}}, "commit"),
        ({"costs": {"params": -1}}, r"costs\.params"),
        ({"evaluation": {"test": {"top1": "many"}}}, r"evaluation\.test\.top1"),
        ({"source": "timm"}, "source"),
        ([1], ""),
    ],
)
def test_an_odd_provenance_is_named(provenance: object, where: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    path = model / "arch.json"
    write_edited(path, {**json.loads(path.read_text()), "provenance": provenance})
    place = rf"provenance\.{where}" if where else "provenance"
    with pytest.raises(ValueError, match=rf"arch\.json is damaged .*: {place}: "):
        prenas.push(model, "me/animals", to=tmp_path / "hub")
    assert names_in(tmp_path) == {"model"}


# --- the Hub -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """An upload."""

    repo: str
    files: dict[str, bytes]
    private: bool


class Hub:
    """Stands for the Hub: keeps what it is sent."""

    calls: list[Call]
    there: list[str] | None = None
    """Files of the repository; None if there is none."""

    def __init__(self, **_: Any) -> None:
        pass

    def model_info(self, repo: str, *, timeout: float) -> ModelInfo:
        assert timeout <= 20
        if Hub.there is None:
            raise _not_found()
        siblings = [{"rfilename": name} for name in Hub.there]
        return ModelInfo(id=repo, siblings=siblings, tags=[])

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        self.private = private

        class Address(str):
            repo_id = repo

        return Address(f"https://hub.example/{repo}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        Hub.calls.append(Call(repo_id, files, self.private))


def _not_found() -> Exception:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(error, "404")
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls, Hub.there = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_a_model_is_sent_to_a_new_repository(hub: type[Hub], tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    before = contents(tmp_path)
    done = prenas.push(model, "me/animals", private=True)
    assert done.place == "https://hub.example/me/animals"
    (call,) = hub.calls
    assert (call.repo, call.private, set(call.files)) == ("me/animals", True, FILES)
    assert call.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert contents(tmp_path) == before


def test_a_repository_that_has_a_model_is_left_alone(hub: type[Hub], tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    hub.there = [".gitattributes", "README.md"]
    with pytest.raises(ValueError, match=r"already has README.md: .* Nothing was sent"):
        prenas.push(model, "me/animals")
    assert hub.calls == []
    prenas.push(model, "me/animals", replace=True)
    hub.there = [".gitattributes"]
    prenas.push(model, "me/animals")
    assert len(hub.calls) == 2


@pytest.mark.parametrize("when", ["model_info", "create_repo", "upload_folder"])
def test_without_a_network_it_says_what_to_do(
    when: str, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(hub, when, fails)
    model = model_of(tmp_path / "model")
    words = (
        r"cannot send to me/animals on the Hub \(ConnectionError: Name or service not known\): "
        "check the network and `hf auth login`, or write the folder with --to FOLDER"
    )
    with pytest.raises(ValueError, match=words):
        prenas.push(model, "me/animals")


# --- the commit ----------------------------------------------------------------------------------


def test_the_commit_is_that_of_our_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package inside somebody's repository, as in a virtual environment, is not theirs."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    ours = origin.commit()
    assert ours is None or len(ours.removesuffix("-dirty")) == 40
    monkeypatch.setattr(origin, "_commit_of_installation", lambda: None)
    (tmp_path / "origin.py").write_text("")
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(origin, "_HERE", tmp_path)
    assert origin.commit() is None
