"""The model card: generated from a run's files, the same bytes every time, registered with its version."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import compare, evaluate, export, metrics, model_card, promote, register, train
from pipelines.config import Config, load_config, load_operation
from pipelines.model_card import CARD, CardInputs, escaped, gather, headline, render
from pipelines.plot_style import label
from pipelines.registry import open_registry
from serving.blobstore import open_store
from serving.errors import DataError, GateError
from serving.ledger import Ledger
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

LINEAGE = {
    "config_sha256": "a" * 64, "trained_config_sha256": "a" * 64, "quotes_sha256": "b" * 64,
    "features_sha256": "c" * 64, "seed": "7", "training_run": "none", "git_commit": "d" * 40, "git_clean": "true",
}  # fmt: skip


def exported(tiny_run: TinyRun, folder: Path, family: str) -> Config:
    """A run of that family up to export, on the tiny run's ingest and features."""
    (folder / "out").mkdir(parents=True)
    kept = ["ingest", "features"] + (["train", "evaluate"] if family == "pricing_lstm" else [])
    for stage in kept:
        (folder / "out" / stage).symlink_to(tiny_run.out / stage)
    cfg = load_config(market.overrides(folder, tiny_run.quotes, family=family))
    if family != "pricing_lstm":
        train.run(cfg)
        evaluate.run(cfg)
    export.run(cfg)
    return cfg


@pytest.fixture(scope="module")
def pricing(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return exported(tiny_run, tmp_path_factory.mktemp("card-pricing"), "pricing_lstm")


@pytest.fixture(scope="module")
def surface(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return exported(tiny_run, tmp_path_factory.mktemp("card-surface"), "surface_vae")


@pytest.fixture(scope="module")
def inputs(pricing: Config) -> CardInputs:
    trained = json.loads((pricing.folder / "train/pricing_lstm/model.json").read_text())
    return gather(pricing, LINEAGE | {"trained_config_sha256": trained["config_sha256"]})


def changed(inputs: CardInputs, **parts: Any) -> str:
    return render(dataclasses.replace(inputs, **parts))


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables: rows of cells, the rule below the headings left out."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert all(re.fullmatch(r"-+:?", cell) for cell in lines[1]), block
        found.append([[cell.strip() for cell in line] for place, line in enumerate(lines) if place != 1])
    return found


def rows(text: str, first: str) -> list[list[str]]:
    """Every row that begins with this cell."""
    return [row for table in tables(text) for row in table if row[0] == first]


def sections(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


WANTED = ["What it is", "What it may be used for, and what not", "Data", "Training", "Results on the test dates",
          "Where it comes from", "Caveats"]  # fmt: skip


def test_the_cards_figures_are_those_of_the_files(inputs: CardInputs) -> None:
    text = render(inputs)
    assert sections(text) == WANTED
    for name, score in inputs.metrics["test"].items():
        row = next(row for row in rows(text, label(name)) if len(row) == 9)
        keys = ("iv_rmse", "iv_mae", "price_rmse", "price_mae")
        assert row[1:5] == [f"{score[key]:.3f}" for key in keys]
        assert row[5] == f"{100 * score['inside_spread']:.2f} %"
        if name != metrics.MODEL:
            assert row[6] == f"{inputs.metrics['diebold_mariano'][name]['t']:.2f}"
    for violations in inputs.metrics["arbitrage_violations"]:
        row = next(row for row in rows(text, violations["predictor"].replace("_", " ")) if len(row) == 5)
        assert row[4] == f"{100 * violations['any']:.2f} %"
    for bound in inputs.metrics["sanity"]:
        assert rows(text, bound["name"])[0][1] == f"{bound['iv_rmse']:.3f}"
    counts = inputs.counts
    assert f"{counts['quotes_in']:,} in, {counts['kept']:,} kept, {counts['quarantined']:,} quarantined" in text
    for name, dates in inputs.metrics["split"].items():
        assert rows(text, name)[0][1:] == [dates, f"{inputs.features['rows_by_split'][name]:,}"]
    parameters = sum(tensor.numel() for tensor in load(inputs).parameters())
    assert rows(text, "parameters")[0][1] == f"{parameters:,}"
    for value in (inputs.bundle.sha256, inputs.metrics["test_set"], *LINEAGE.values()):
        assert value in text
    assert f"{inputs.parity['max_abs_iv_difference']:.2g}" in text


def load(inputs: CardInputs) -> Any:
    from pipelines.trained import load_trained

    out = inputs.cfg.folder
    return load_trained(out / "train" / inputs.cfg.model.name, out / "features").net


def test_features_tensors_and_anchors_are_the_bundles(inputs: CardInputs) -> None:
    text = render(inputs)
    spec = inputs.bundle.manifest.feature_spec
    for name in (*spec["step_features"], *spec["contract_features"]):
        assert name in text
    shown = {(row[0], row[1].partition(": ")[2]) for table in tables(text) for row in table if ".onnx" in row[0]}
    assert shown == {
        (file.name, tensor.name)
        for file in inputs.bundle.manifest.members[0].files.values()
        for tensor in (*file.inputs, *file.outputs)
    }
    assert "Anchors: 14 days at moneyness 0" in text
    without = dataclasses.replace(inputs.cfg, data=dataclasses.replace(inputs.cfg.data, anchors=()))
    assert "Trained without anchors, so there is no correction" in changed(inputs, cfg=without)


def test_equal_files_give_equal_bytes_and_nothing_of_the_machine(pricing: Config, inputs: CardInputs) -> None:
    text = render(inputs)
    assert render(gather(pricing, dict(inputs.lineage))) == text
    for place in (str(pricing.folder), pricing.data.path, pricing.storage.url, pricing.registry.tracking_uri):
        assert place not in text


def test_settings_are_those_trained_with_or_none(inputs: CardInputs) -> None:
    assert rows(render(inputs), "epochs")[0][1] == str(inputs.cfg.trainer.epochs)
    other = dataclasses.replace(inputs.cfg, trainer=dataclasses.replace(inputs.cfg.trainer, epochs=99))
    text = changed(inputs, cfg=other)
    assert rows(text, "epochs") == []
    assert "isn't the one it was trained with" in text


def test_american_quotes_are_told(inputs: CardInputs) -> None:
    assert "European equivalents" not in render(inputs)
    text = changed(inputs, quotes={**inputs.quotes, "style": "american, european"})
    assert "American quotes are turned into European equivalents" in text


def test_reproduction_names_the_commit_and_the_way(inputs: CardInputs) -> None:
    text = render(inputs)
    assert f"    git checkout {'d' * 40}\n    python -m pipelines.ingest model=pricing_lstm out=DIR" in text
    assert "git_clean is" not in text
    in_dvc = dataclasses.replace(inputs.cfg, out="artifacts")
    assert "    make install\n    dvc repro evaluate@pricing_lstm export@pricing_lstm\n" in changed(inputs, cfg=in_dvc)
    unknown = {**inputs.lineage, "git_commit": "unknown", "git_clean": "unknown"}
    text = changed(inputs, lineage=unknown)
    assert "git checkout" not in text
    assert "git_clean is unknown" in text


def with_test(inputs: CardInputs, **values: Any) -> dict[str, Any]:
    tests = {**inputs.metrics["diebold_mariano"]}
    tests["flat"] = {**tests["flat"], **values}
    return {**inputs.metrics, "diebold_mariano": tests}


def finding(text: str) -> str:
    return next(row for row in rows(text, "flat") if len(row) == 9)[8]


def test_a_difference_is_claimed_only_where_test_and_errors_agree(inputs: CardInputs) -> None:
    better = inputs.metrics["test"]["model"]["iv_rmse"] < inputs.metrics["test"]["flat"]["iv_rmse"]
    assert better
    for values, words in (
        ({"t": 3.0, "p": 0.01}, "significantly better"),
        ({"t": 3.0, "p": 0.05}, "not significant"),
        ({"t": -3.0, "p": 0.01}, "not significant"),
        ({"t": None, "p": None, "reason": "2 date(s), at least 3 needed"}, "2 date(s), at least 3 needed"),
    ):
        assert finding(changed(inputs, metrics=with_test(inputs, **values))) == words


def test_a_broken_bound_is_said(inputs: CardInputs) -> None:
    wrong = [{"name": "oracle", "iv_rmse": 1e9, "should_be": "better", "note": ""}]
    assert rows(changed(inputs, metrics={**inputs.metrics, "sanity": wrong}), "oracle")[0][3] == "BROKEN"


HOSTILE = "<script>x</script> | [a](javascript:b) `c` *d* &lt; \\\n# e\n\n| f |"


def test_what_people_wrote_is_text(inputs: CardInputs) -> None:
    data = dataclasses.replace(inputs.cfg.data, provenance=HOSTILE)
    text = changed(
        inputs, cfg=dataclasses.replace(inputs.cfg, data=data), quotes={**inputs.quotes, "underlying": HOSTILE},
        metrics={**inputs.metrics, "sanity": [{"name": HOSTILE, "iv_rmse": 1.0, "should_be": "worse", "note": ""}]},
    )  # fmt: skip
    plain = "\n".join(
        line for line in text.splitlines() if not line.startswith("    ")
    )  # code shows things as they are
    assert "<script" not in plain
    assert not re.search(r"(?<!\\)\[a", plain)
    assert sections(text) == WANTED
    assert all(len({len(row) for row in table}) == 1 for table in tables(text))


@pytest.mark.parametrize("text", ["-0.5, 0.1", "14 days", "no_price 3", "S&P 500", "2019-01-02"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text


def test_missing_files_are_all_named_with_their_stages(pricing: Config, tmp_path: Path) -> None:
    empty = dataclasses.replace(pricing, out=str(tmp_path))
    with pytest.raises(DataError) as caught:
        gather(empty, LINEAGE)
    made_by = {"metrics.json": "evaluate", "counts.json": "ingest", "summary.json": "features", "parity.json": "export"}
    for name, stage in made_by.items():
        assert f"{name} (python -m pipelines.{stage})" in str(caught.value)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"test": {"model": {"iv_rmse": 0.25}}, "best_baseline": {"name": "svi", "iv_rmse": 0.5}},
         "IV RMSE on the test dates 0.25 vol points; best baseline svi, 0.5."),
        ({"test": {"model": {"iv_rmse": 0.25}}}, "IV RMSE on the test dates 0.25 vol points."),
        ({"test": []}, "Bundle " + "e" * 64 + ". Artifact"),
        (None, "Bundle " + "e" * 64 + ". Artifact"),
    ],
)  # fmt: skip
def test_headline_says_what_is_known(known: Any, says: str) -> None:
    """The ledger's record of an old version, rebuilt into an empty MLflow, may lack anything."""
    assert says in headline("e" * 64, known)


def test_the_card_goes_with_the_version(pricing: Config) -> None:
    done = register.run(pricing)
    written = pricing.folder / "register" / "pricing_lstm" / CARD
    content = written.read_bytes()
    registry = open_registry(pricing.registry.tracking_uri)
    run = registry.client.get_run(done.run_id)
    kept = Path(run.info.artifact_uri.removeprefix("file://")) / CARD
    assert kept.read_bytes() == content
    version = registry.client.get_model_version("pricing_lstm", str(done.version))
    assert done.bundle_sha256 in version.description
    error = json.loads((pricing.folder / "evaluate/pricing_lstm/metrics.json").read_text())["test"]["model"]["iv_rmse"]
    assert f"{error:.4g} vol points" in version.description
    events = len(Ledger(open_store(pricing.storage.url), "pricing_lstm").events())
    assert register.run(pricing) == done
    assert written.read_bytes() == content
    assert len(Ledger(open_store(pricing.storage.url), "pricing_lstm").events()) == events


def test_no_card_no_version(pricing: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What can't be described isn't registered."""

    def broken(_: object) -> str:
        raise DataError("no card")

    monkeypatch.setattr(register, "render", broken)
    cfg = dataclasses.replace(pricing, storage=dataclasses.replace(pricing.storage, url=str(tmp_path / "store")))
    with pytest.raises(DataError, match="no card"):
        register.run(cfg)
    assert open_store(cfg.storage.url).list() == []


# A surface model, from training to champion.


@pytest.mark.slow
def test_a_surface_models_card(surface: Config) -> None:
    found = gather(surface, LINEAGE)
    text = render(found)
    assert sections(text) == WANTED
    assert "hidden quotes on" in text
    assert "Anchors:" not in text
    shares = [row for table in tables(text) for row in table if row[0] == "80 %"]
    baselines = {"interpolation", "grid_interpolation", "svi", "sticky_strike", "shifted_last"}
    assert {row[1] for row in shares} == {"model", "net alone", *baselines}
    assert len([row for table in tables(text) for row in table if row[0] == "member-0/surface.onnx"]) == 10
    assert all(len({len(row) for row in table}) == 1 for table in tables(text))


@pytest.mark.slow
def test_a_surface_model_is_compared_registered_and_gated(
    surface: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = compare.run(surface)
    assert page.families == ("surface_vae",)
    assert "Faults found" in page.report.read_text()
    version = register.run(surface).version

    def promoted(ratio: float) -> promote.Promotion:
        return promote.run(load_operation([
            "model=surface_vae", f"version={version}", f"storage.url={surface.storage.url}", "by=ci",
            f"registry.tracking_uri={surface.registry.tracking_uri}", f"signing.folder={tmp_path}/keys",
            "gate=development", "gate.lineage.enabled=false",  # made outside DVC's folder
            f"gate.accuracy.ratio={ratio}", "gate.accuracy.min_dates=3",  # of five dates, by a net that hardly learned
                "gate.accuracy.baseline_significance=null",
        ]))  # fmt: skip

    with pytest.raises(GateError, match=r"accuracy: .* x shifted_last's") as caught:
        promoted(1e-6)
    assert "parity" not in str(caught.value)
    done = promoted(1e6)
    assert done.changed
    asked = {outcome.name for outcome in done.outcomes if outcome.asked}
    assert asked == {"integrity", "accuracy", "arbitrage", "greeks", "parity", "size", "feature_spec"}
    assert [outcome.message for outcome in done.outcomes if not outcome.passed] == []


@pytest.mark.parametrize("family", ["pricing", pytest.param("surface", marks=pytest.mark.slow)])
def test_the_gates_baseline_is_one_the_evaluation_has(family: str, request: pytest.FixtureRequest) -> None:
    get: Callable[[str], Any] = request.getfixturevalue
    cfg = get(family)
    test = json.loads((cfg.folder / "evaluate" / cfg.model.name / "metrics.json").read_text())["test"]
    assert cfg.gate["accuracy"]["baselines"][cfg.model.task] in test


def test_the_module_stays_light() -> None:
    """Promoting imports it; what draws and computes is imported where it is used."""
    assert not {"jinja2", "polars"} & set(vars(model_card))
