"""Versions small enough to gate in milliseconds, and exams whose right answers are known.

`World` is a store and a ledger of one model. The market of an exam is what one chosen net answers, plus noise: a
version of that net errs by the noise alone, another by what it differs from it. The pricing net is that of
tests/small_nets.py, the surface net that of tests/tiny_surface.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save

from pipelines.completion import Snapshot
from pipelines.exam import QUOTES, Exam, store_exam
from pipelines.exam_answers import answer, exam_table
from pipelines.exam_questions import SPEC_KEYS
from pipelines.gate_context import GateContext, GateOutcome
from pipelines.metrics import scores
from serving.bundle import Bundle, load_bundle, store_bundle, write_bundle
from serving.canonical import sha256_hex
from serving.features import FeatureSpec
from serving.folder_store import FolderStore
from serving.ledger import Ledger, State
from serving.manifest import Member, MemberFile
from serving.surface_grid import fill, grid_spec
from tests.small_nets import SPEC, F, K, T, member_files, reference_context, reference_head, weights_of
from tests.tiny_bundle import npz_bytes
from tests.tiny_surface import surface_bundle

QUOTES_HASH, CONFIG_HASH = "ab" * 32, "cd" * 32
DATES, STRIKES = 14, np.linspace(92.0, 108.0, 8)
TAUS = np.array([30.0, 60.0, 120.0]) / 365.0
FIRST_TEST_DAY = 19_000  # since 1970-01-01
NOISE = 0.002  # of volatility
LOOSE_LATENCY = {  # a few calls on a busy machine say nothing about an engine
    "calls": 200, "step_p50_us": 1e9, "step_p99_excess_us": 1e9, "chain_p50_us": 1e9, "chain_p99_excess_us": 1e9,
}  # fmt: skip
LINEAGE = {
    "git_commit": "c" * 40, "git_clean": "true", "dvc_clean": "true", "dvc_lock_sha256": "1" * 64,
    "constraints_sha256": "2" * 64, "quotes_sha256": QUOTES_HASH, "features_sha256": "3" * 64,
    "config_sha256": "4" * 64, "trained_config_sha256": CONFIG_HASH, "seed": "7", "training_run": "run-1",
}  # fmt: skip
GREEKS = [{"greek": name, "against_finite_differences": 1e-6, "against_the_host": 1e-14}
          for name in ("delta", "gamma", "vega", "theta")]  # fmt: skip


def pricing_bundle(
    directory: Path, *, seed: int = 0, tenth: float = 0.1, spec: FeatureSpec = SPEC, golden_shift: float = 0.0,
    weights_file: bool = True, model: str = "small",
) -> Bundle:  # fmt: skip
    """A net of `seed` whose answer is its prior times up to 1 + `tenth`; `golden_shift` spoils golden volatilities."""
    weights = weights_of(seed)
    member, files = member_files(0, weights)
    head = onnx.load_from_string(files["member-0/head.onnx"])
    for tensor in head.graph.initializer:
        if tensor.name == "tenth":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(tenth), "tenth"))
    files["member-0/head.onnx"] = head.SerializeToString()
    rng = np.random.default_rng(1)
    window = rng.normal(size=(3, T, F)).astype(np.float32)
    contracts = rng.normal(0.2, 0.02, size=(6, K)).astype(np.float32)
    context = np.array([reference_context(weights, one, T) for one in window])
    prior = contracts[:, 0].astype(np.float64)
    iv = (prior + (reference_head(weights, context[0], contracts) - prior) * tenth / 0.1).astype(np.float32)
    golden = {"window": window, "contracts": contracts, "context-0": context.astype(np.float32), "iv-0": iv,
              "iv": iv + np.float32(golden_shift)}  # fmt: skip
    files["golden.npz"] = npz_bytes(**golden)
    if weights_file:
        files["member-0/weights.safetensors"] = save(weights)
        member = Member({**member.files, "weights": MemberFile("member-0/weights.safetensors")})
    return write_bundle(
        directory, model=model, model_config={"seed": seed, "tenth": tenth}, members=[member], files=files,
        feature_spec=spec.to_json(), semantics="window", tolerances={"context": 2e-6, "iv": 2e-6},
        data_sha256=QUOTES_HASH, config_sha256=CONFIG_HASH,
    )  # fmt: skip


def market_prior(moneyness: np.ndarray) -> np.ndarray:
    """A smile without arbitrage."""
    return np.asarray(0.2 - 0.05 * moneyness + 0.1 * moneyness**2)


def _rows(dates: int) -> dict[str, Any]:
    """Everything of the rows but volatilities: three smiles of eight strikes on every date, forward 100."""
    tau = np.repeat(np.tile(TAUS, dates), len(STRIKES))
    strike = np.tile(STRIKES, 3 * dates)
    count = len(tau)
    return {
        "snapshot": np.repeat(np.arange(dates, dtype=np.int32), 3 * len(STRIKES)),
        "root": np.zeros(count, np.int32), "strike": strike, "tau": tau,
        "right": np.where(strike >= 100.0, 1, -1).astype(np.int8),
        **{name: np.full(count, 100.0) for name in ("forward", "forward_carried", "forward_model")},
        **{name: np.exp(-0.03 * tau) for name in ("discount", "discount_model")},
    }  # fmt: skip


def _exam(task: str, spec: dict[str, Any], rows: dict[str, Any], inputs: dict[str, Any], baseline: str) -> Exam:
    count, dates = len(rows["tau"]), int(rows["snapshot"][-1]) + 1
    nothing = np.full(count, 0.2)
    return Exam(
        task, spec, {baseline: "forward_carried"}, np.arange(FIRST_TEST_DAY, FIRST_TEST_DAY + dates, dtype=np.int32),
        np.arange(FIRST_TEST_DAY - 50, FIRST_TEST_DAY - 10, dtype=np.int32),
        np.arange(FIRST_TEST_DAY - 10, FIRST_TEST_DAY, dtype=np.int32),
        {**rows, "bid": np.full(count, 0.1), "ask": np.full(count, 50.0), "iv_market": nothing, "answer": nothing},
        {baseline: nothing}, inputs,
    )  # fmt: skip


def pricing_questions(dates: int = DATES, *, spec: FeatureSpec = SPEC) -> Exam:
    """An exam without answers: random steps and contract features; smooth priors."""
    rng = np.random.default_rng(11)
    rows = _rows(dates)
    contracts = rng.normal(0, 0.5, (dates, K)).astype(np.float32)[rows["snapshot"]]
    contracts[:, 0] = market_prior(np.log(rows["strike"] / 100.0) / np.sqrt(rows["tau"]))
    count = np.minimum(np.arange(3, dates + 3), 6).astype(np.int32)  # fewer than T = 5 steps at first
    inputs = {"steps": rng.normal(size=(dates + 2, F)).astype(np.float32), "contracts": contracts,
              "step_end": np.arange(3, dates + 3, dtype=np.int32), "step_count": count}  # fmt: skip
    kept = {name: value for name, value in spec.to_json().items() if name in SPEC_KEYS}
    return _exam("pricing", kept, rows, inputs, "anchored_sticky_strike")


def surface_questions(dates: int = DATES) -> Exam:
    """Of a surface model: half of every date's quotes are hidden; the last surface lies a little lower."""
    rng = np.random.default_rng(12)
    rows = _rows(dates)
    moneyness = np.log(rows["strike"] / 100.0) / np.sqrt(rows["tau"])
    now = market_prior(moneyness)
    hidden = rng.random(len(now)) < 0.5
    hidden[:: len(STRIKES)] = False  # each smile keeps its first quote
    smile = np.tile(np.repeat(np.arange(3, dtype=np.int32), len(STRIKES)), dates)
    quotes = {"snapshot": rows["snapshot"], "smile": smile, "tau": rows["tau"], "moneyness": moneyness,
              "volatility": now + 0.001 * rng.normal(size=len(now)), "last": now - 0.01, "hidden": hidden}  # fmt: skip
    grids = []
    for place in range(dates):
        today = rows["snapshot"] == place
        columns = {name: quotes[name][today] for name in QUOTES[1:]}
        grids.append(
            Snapshot(**(columns | {"volatility": columns["last"], "hidden": np.zeros(today.sum(), bool)})).grid()
        )
    inputs = {f"quote_{name}": values for name, values in quotes.items()} | {
        "last": np.array([fill(grid) for grid in grids], np.float32),
        "last_mask": np.array([grid.mask for grid in grids], np.float32),
        "move": rng.normal(0, 0.01, (dates, 3)).astype(np.float32), "blend": np.array([0.5, 0.3]),
    }  # fmt: skip
    return _exam(
        "surface", grid_spec(), {name: values[hidden] for name, values in rows.items()}, inputs, "shifted_last"
    )


def answered(questions: Exam, bundle: Bundle, truth: Bundle, *, noise: float = NOISE, **rows: Any) -> Exam:
    """The exam of `bundle` in a market that quotes what `truth` answers, and noise; the baseline errs by twice that."""
    rng = np.random.default_rng(13)
    right = answer(truth, questions)
    market = right + noise * rng.normal(size=len(right))
    baselines = {name: (market + 2 * noise * rng.normal(size=len(right))).astype(np.float32)
                 for name in questions.baselines}  # fmt: skip
    own = answer(bundle, questions).astype(np.float32)
    return dataclasses.replace(
        questions, baselines=baselines, rows={**questions.rows, "iv_market": market, "answer": own, **rows}
    )


def details_of(exam: Exam, bundle: Bundle) -> dict[str, Any]:
    """What registration would record, but for the exam's hash."""
    table = exam_table(exam, {"model": answer(bundle, exam)})
    test = {name: dict(score) for name, score in scores(table).items()}
    greeks = GREEKS if exam.task == "pricing" else []
    return {"metrics": {"test": test, "greeks": greeks}, "lineage": dict(LINEAGE), "dates": exam.seen()}


@dataclass
class World:
    """A store and the ledger of one model."""

    folder: Path
    model: str = "small"

    def __post_init__(self) -> None:
        self.store = FolderStore(self.folder / "store")
        self.ledger = Ledger(self.store, self.model)

    def state(self) -> State:
        return self.ledger.state()

    def bundle(self, seed: int = 0, **other: Any) -> Bundle:
        """A net of this model; equal arguments give equal bundles."""
        name = sha256_hex(repr((seed, sorted(other.items()))).encode())[:12]
        folder = self.folder / f"bundle-{name}"
        if folder.exists():
            return load_bundle(folder)
        if self.model == "surface_vae":
            return surface_bundle(folder, seed=seed, **other)
        return pricing_bundle(folder, seed=seed, model=self.model, **other)

    def questions(self, dates: int = DATES) -> Exam:
        return surface_questions(dates) if self.model == "surface_vae" else pricing_questions(dates)

    def register(self, bundle: Bundle, *, truth: Bundle | None = None, exam: Exam | None = None, **details: Any) -> int:
        """A version with its exam; `truth` is whose answers the market quotes, `details` replace recorded ones."""
        exam = exam or answered(self.questions(), bundle, truth or bundle)
        store_bundle(self.store, bundle)
        path = self.folder / f"{bundle.sha256}.npz"
        path.write_bytes(exam.to_bytes())
        recorded = {**details_of(exam, bundle), "exam": store_exam(self.store, path), **details}
        state = self.state()
        version = len(state.versions) + 1
        self.ledger.append(state, "registered", version=version, bundle=bundle.sha256, by="trainer", details=recorded)
        return version

    def champion(self, version: int) -> None:
        """Make it so, without asking anybody."""
        state, bundle = self.state(), self.state().versions[version].bundle
        verdict = {"passed": True, "report": "0" * 64}
        state = self.ledger.append(state, "gated", version=version, bundle=bundle, by="ci", details=verdict)
        self.ledger.append(state, "promoted", version=version, bundle=bundle, by="ci", details={})

    def context(self, version: int, **other: Any) -> GateContext:
        """As pipelines/gate_run.py makes it; `other` replaces fields."""
        state = self.state()
        known, champion = state.known(version), state.champion
        made = GateContext(
            model=self.model, version=version, bundle_sha256=known.bundle, details=known.registered.details,
            champion_version=champion.version if champion else None,
            champion_details=state.versions[champion.version].registered.details if champion else None,
            store=self.store, work_dir=self.folder / "work",
            champion_bundle_sha256=champion.bundle if champion else None, by="ci", approve_by="Ann",
        )  # fmt: skip
        return dataclasses.replace(made, **other)


def with_answers(world: World, **rows: Any) -> Exam:
    """The exam of net 0 with some columns of its rows replaced."""
    return answered(world.questions(), world.bundle(0), world.bundle(0), **rows)


def ask(name: str, context: GateContext, **settings: Any) -> GateOutcome:
    """One gate with its default settings but these, as a promotion asks it."""
    from pipelines.gates import load_gates

    gates = load_gates({name: settings}, task="surface" if context.model == "surface_vae" else "pricing")
    return gates[0](context)
