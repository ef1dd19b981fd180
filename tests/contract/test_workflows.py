"""The release workflows: what may stand in them, and what they do when act runs them on this machine.

The runs happen in a copy of the tracked files with a store and an MLflow of their own. act skips actions/checkout for a
local repository; actions/setup-python and actions/upload-artifact, which would come from the network, are replaced by
empty ones, and the environment is the one the tests run in (repository variable STRIKEFORGE_VENV). Everything else is
what a runner does: conditions, inputs, environment, every `run:` step, the call of one workflow by the other.
Not covered: GitHub's own part (reviewers of the environment, queues, the schedule).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.channel.publish import open_channel
from pipelines.config import load_operation
from pipelines.register import register
from pipelines.registry import open_registry
from serving.blobstore import open_store
from serving.errors import ConfigError
from serving.events import Event
from serving.folder_store import FolderStore
from serving.ledger import Ledger, State
from tests.pipelines import market
from tests.pipelines.channel.desk import signing
from tests.pipelines.gates.world import World, answered, details_of
from tests.tiny_registry import tracking_uri

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)
FOLDER = ROOT / ".github/workflows"
OURS_OR_A_RUNNERS = "COV_|STRIKEFORGE_|MAKE|MFLAGS|GITHUB_|RUNNER_|ACTIONS_"
RELEASE = ("retrain", "promote", "rollback", "refresh")
ACTIONS = {"actions/checkout", "actions/setup-python", "actions/upload-artifact"}
MODEL = "pricing_lstm"
HOSTILE = (
    """it's "bad", a=b, $(touch pwned), $(shell touch pwned), `touch pwned`, ${oops}, ${oc.env:HOME}, {1,2}, """
    "[x], $$5 # not \\ a; touch pwned & comment üñ→"
)


def workflow(name: str) -> dict[Any, Any]:
    value: dict[Any, Any] = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    return value


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)["jobs"]
    return found


def inputs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 reads `on` as true
    return found


# What stands in them.

NAMES = sorted(path.stem for path in FOLDER.glob("*.yml"))


def test_the_release_workflows_are_there() -> None:
    assert set(RELEASE) <= set(NAMES)


def test_actionlint_passes() -> None:
    done = subprocess.run([VENV / "bin/actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_inside_a_script(name: str) -> None:
    """What an expression holds is pasted into a script before the shell reads it: text would become code."""
    for job in jobs(name).values():
        for step in job.get("steps", []):
            assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("name", NAMES)
def test_every_job_is_bounded_and_may_only_read(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    for job_name, job in jobs(name).items():
        assert job.get("permissions", {"contents": "read"}) == {"contents": "read"}, job_name
        assert "uses" in job or 1 <= job["timeout-minutes"] <= 360, job_name


@pytest.mark.parametrize("name", NAMES)
def test_only_three_foreign_actions_by_major_version(name: str) -> None:
    for job in jobs(name).values():
        assert job.get("uses", "./.github/workflows/").startswith("./.github/workflows/")
        for step in job.get("steps", []):
            if "uses" in step:
                action, _, version = step["uses"].partition("@")
                assert action in ACTIONS
                assert re.fullmatch(r"v\d+", version)


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_they_call_is_in_the_help(name: str) -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r"make (?:--silent )?([a-z-]+)", str(jobs(name))))
    assert called
    for target in called:
        assert re.search(rf"^  make {target} ", help_text, re.MULTILINE), target


def test_every_model_can_be_chosen() -> None:
    families = {path.stem for path in (ROOT / "conf/model").glob("*.yaml")}
    for name in ("retrain", "promote", "rollback"):
        assert families <= set(inputs(name)["model"]["options"]), name


def test_release_decisions_of_a_model_queue_behind_a_protected_environment() -> None:
    for name in ("promote", "rollback"):
        job = jobs(name)[name]
        assert job["environment"] == "production"
        assert job["concurrency"] == {"group": "release-${{ inputs.model }}", "cancel-in-progress": False}
        assert inputs(name)["reason"]["required"] is True
    assert workflow("promote")[True]["workflow_call"]["inputs"].keys() == inputs("promote").keys()


# What is typed.


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip))
@example(HOSTILE)
@example("null")
@example("12")
def test_text_named_to_hydra_arrives_unread(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIKEFORGE_REASON", text)
        patch.setenv("STRIKEFORGE_VERSION", "3")
        told = load_operation(["reason=${oc.env:STRIKEFORGE_REASON}", "version=${oc.env:STRIKEFORGE_VERSION}"])
    assert (told.reason, told.version) == (text, 3)


def test_packs_named_to_make_arrive_as_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIKEFORGE_PACKS", "out/a b,${oops},")
    assert load_operation(["packs=${oc.env:STRIKEFORGE_PACKS}"]).packs == ("out/a b", "${oops}")
    assert load_operation(["packs=[x,y]"]).packs == ("x", "y")


@pytest.mark.parametrize(("given", "lacks"), [(["TARGET=x"], "MODEL"), (["MODEL=x"], "TARGET")])
def test_make_compile_wants_a_model_and_a_target(given: list[str], lacks: str) -> None:
    done = run(["make", "compile", f"VENV={VENV}", "STRIKEFORGE_WITHOUT_NATIVE=1", *given], ROOT)
    assert done.returncode != 0
    assert f"STRIKEFORGE_{lacks}: must be given" in done.stderr


@pytest.mark.parametrize("number", ["", "0", "-1", "3.0", "+3", "3 ", "3\n", "٣", "1_0", "9" * 10, "${oc.env:HOME}"])
def test_only_a_number_is_a_version(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("STRIKEFORGE_VERSION", number)
    with pytest.raises(ConfigError) as caught:
        load_operation(["version=${oc.env:STRIKEFORGE_VERSION}"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["version"]
    assert "value " in str(caught.value)


# What they do.


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command there, with the tests' environment first on the path and nothing of this repository's own settings."""
    kept = {name: text for name, text in os.environ.items() if not re.match(OURS_OR_A_RUNNERS, name)}
    kept["PATH"] = f"{VENV / 'bin'}{os.pathsep}{kept['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False, timeout=900
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


def commit_all(folder: Path) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    succeeded(run(["git", "add", "-A"], folder))
    succeeded(run(["git", *who, "commit", "-q", "--message", "copy"], folder))


@dataclass(frozen=True)
class Site:
    """A checkout, a store, an MLflow: what an operator and a runner see."""

    folder: Path
    checkout: Path

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.folder / "store")

    @property
    def keys(self) -> Path:
        """Where development keys are made; not in the checkout, which the tests share."""
        return self.folder / "keys"

    def events(self) -> list[Event]:
        return Ledger(self.store, MODEL).events()

    def kinds(self) -> list[str]:
        return [f"{event.kind} {event.version}" for event in self.events()]

    def state(self) -> State:
        return Ledger(self.store, MODEL).state()

    def champion(self) -> int | None:
        champion = self.state().champion
        return champion.version if champion else None

    def aliases(self) -> dict[str, int]:
        return open_registry(tracking_uri(self.folder)).aliases(MODEL)

    def register(self, seed: int, *, poor: bool = False) -> int:
        """A version with everything the gates ask for; a poor one errs by more than its baseline."""
        world = World(self.folder, MODEL)
        bundle = world.bundle(seed)
        exam = answered(world.questions(), bundle, world.bundle(seed + 100, tenth=0.5) if poor else bundle)
        path = self.folder / f"exam-{seed}.npz"
        path.write_bytes(exam.to_bytes())
        known = details_of(exam, bundle)
        return register(
            model=MODEL,
            bundle_dir=bundle.directory,
            metrics=known["metrics"],
            parity={"iv": 1e-7},
            lineage=known["lineage"],
            registry=open_registry(tracking_uri(self.folder)),
            store=self.store,
            exam=path,
            dates=known["dates"],
            by="trainer",
        ).version

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        places = [f"STORE={self.folder}/store", f"TRACKING={tracking_uri(self.folder)}", f"VENV={VENV}"]
        return run(["make", *places, *words], self.checkout, STRIKEFORGE_KEYS=str(self.keys), **environment)

    def act(self, name: str, variables: dict[str, str] | None = None, **inputs: str) -> tuple[int, str]:
        """Dispatch a workflow; exit code and log."""
        event = self.folder / "event.json"
        event.write_text(json.dumps({"inputs": inputs}), encoding="utf-8")
        known = {
            "STRIKEFORGE_STORE": f"{self.folder}/store",
            "STRIKEFORGE_TRACKING": tracking_uri(self.folder),
            "STRIKEFORGE_VENV": str(VENV),
            "STRIKEFORGE_SIGNING": "development",
        }
        given = [f"--var={key}={value}" for key, value in (known if variables is None else variables).items()]
        stubs = [
            f"--local-repository={action}@{version}={empty_action(self.folder)}"
            for action, version in used_actions()
            if action != "actions/checkout"
        ]
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        done = run(
            [VENV / "bin/act", "workflow_dispatch", "-W", f".github/workflows/{name}.yml", "-e", event,
             "-P", "ubuntu-latest=-self-hosted", "--no-cache-server", f"--action-cache-path={self.folder}/act",
             "--actor=alice", f"--env=STRIKEFORGE_KEYS={self.keys}", *runners_own(), *stubs, *given],
            self.checkout, HOME=str(home), XDG_CACHE_HOME=str(home), XDG_CONFIG_HOME=str(home),
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


def runners_own() -> list[str]:
    """What a runner's environment holds for the SDKs of object stores."""
    return [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("AWS_")]


def used_actions() -> set[tuple[str, str]]:
    text = "".join((FOLDER / f"{name}.yml").read_text(encoding="utf-8") for name in RELEASE)
    return set(re.findall(r"uses: (actions/[\w-]+)@(v\d+)", text))


def empty_action(folder: Path) -> Path:
    stub = folder / "empty-action"
    stub.mkdir(exist_ok=True)
    (stub / "action.yml").write_text(
        'name: empty\nruns: {using: composite, steps: [{run: "true", shell: bash}]}\n', encoding="utf-8"
    )
    return stub


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked and the new files as a repository of its own; nobody writes into it."""
    folder = tmp_path_factory.mktemp("workflows") / "strikeforge"
    names = succeeded(run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    succeeded(run(["git", "init", "-q"], folder))
    commit_all(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path, checkout: Path) -> Site:
    (tmp_path / "store").mkdir()
    return Site(tmp_path, checkout)


@pytest.mark.slow
def test_make_promotes_rolls_back_and_retires(site: Site) -> None:
    """An operator's day, as it is typed; hostile text arrives as it is and nothing in it is executed."""
    first, second, poor = site.register(1), site.register(2), site.register(3, poor=True)
    unapproved = site.make("promote", f"MODEL={MODEL}", f"VERSION={first}", f"REASON={HOSTILE}", f"BY={HOSTILE}")
    assert "- approval: " in unapproved.stderr
    assert site.champion() is None
    words = [f"REASON={HOSTILE}", f"BY={HOSTILE}", f"APPROVE_BY={HOSTILE}"]
    succeeded(site.make("promote", f"MODEL={MODEL}", f"VERSION={first}", *words))
    assert [(event.kind, event.reason, event.by) for event in site.events()[4:]] == [
        ("gated", HOSTILE, HOSTILE), ("promoted", HOSTILE, HOSTILE),
    ]  # fmt: skip
    assert site.events()[-1].details["approve_by"] == HOSTILE
    succeeded(site.make("promote", f"MODEL={MODEL}", f"VERSION={second}", "APPROVE_BY=Ann"))

    refused = site.make("promote", f"MODEL={MODEL}", f"VERSION={poor}", "REASON=better?", "APPROVE_BY=Ann")
    assert "promote] Error 7" in refused.stderr
    assert "- accuracy: " in refused.stderr
    assert site.champion() == second

    before = site.kinds()
    assert (
        "champion and can't be retired" in site.make("retire", f"MODEL={MODEL}", f"VERSION={second}", "REASON=x").stderr
    )
    succeeded(site.make("rollback", f"MODEL={MODEL}", "REASON=12", "DRY_RUN=true"))
    for words in (["REASON=why", "TO=2; touch pwned"], ["REASON="], ["REASON=why", "DRY_RUN=perhaps"]):
        assert "rollback] Error 2" in site.make("rollback", f"MODEL={MODEL}", *words).stderr
    for words in (["status"], ["status", "MODEL=$(shell touch pwned)"], ["rollback", "MODEL=x,y", "REASON=why"]):
        assert site.make(*words).returncode != 0
    assert site.kinds() == before

    succeeded(site.make("rollback", f"MODEL={MODEL}", "REASON=12"))
    succeeded(site.make("retire", f"MODEL={MODEL}", f"VERSION={second}", "REASON=null"))
    assert [(event.kind, event.version, event.reason) for event in site.events()[-2:]] == [
        ("rolled_back", first, "12"), ("retired", second, "null"),
    ]  # fmt: skip
    printed = succeeded(site.make("status", f"MODEL={MODEL}"))
    assert f"champion version {first}, release 3" in printed
    assert not list(site.checkout.rglob("pwned"))


@pytest.mark.slow
def test_places_may_come_from_the_environment(site: Site) -> None:
    site.register(1)
    places = {"STRIKEFORGE_STORE": f"{site.folder}/store", "STRIKEFORGE_TRACKING": tracking_uri(site.folder)}
    asked = ["make", f"VENV={VENV}", "reconcile", f"MODEL={MODEL}"]
    assert "champion none, challenger none" in succeeded(run(asked, site.checkout, **places))
    typed = run([*asked, f"STORE={site.folder}/other"], site.checkout, **places)
    assert f"no ledger in FolderStore('{site.folder}/other')" in typed.stderr


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({}, "STRIKEFORGE_STORE isn't set"),
        ({"STRIKEFORGE_STORE": "/x"}, "STRIKEFORGE_TRACKING isn't set"),
        ({"STRIKEFORGE_STORE": "store", "STRIKEFORGE_TRACKING": "x"}, "'store' is relative"),
        ({"STRIKEFORGE_STORE": "/no such", "STRIKEFORGE_TRACKING": "x"}, "has no folder '/no such'"),
    ],
)
def test_preflight_says_what_is_missing(places: dict[str, str], says: str) -> None:
    done = run(["make", "preflight"], ROOT, **places)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


@pytest.mark.slow
def test_promote_and_rollback_through_act(site: Site) -> None:
    """The champion changes, the summary says so; hostile inputs arrive as text."""
    first, second = site.register(1), site.register(2)
    code, log = site.act("promote", model=MODEL, version=str(first), reason=HOSTILE, approve_by="Ann", dry_run="true")
    assert (code, site.champion()) == (0, None), log
    assert "dry run, nothing written" in log

    code, log = site.act("promote", model=MODEL, version=str(first), reason=HOSTILE, approve_by=HOSTILE)
    assert code == 0, log
    assert site.kinds()[2:] == [f"gated {first}", f"promoted {first}"]
    assert {(event.reason, event.by) for event in site.events()[2:]} == {(HOSTILE, "alice")}
    assert site.aliases() == {"champion": first}
    for words in (
        "### before",
        "champion none;",
        "### after",
        f"champion version {first}, release 1",
        "accuracy passed",
    ):
        assert words in log

    code, log = site.act("promote", model=MODEL, version=str(second), reason="better", approve_by="Ann")
    assert (code, site.champion()) == (0, second), log
    code, log = site.act("rollback", model=MODEL, reason=HOSTILE)
    assert code == 0, log
    last = site.events()[-1]
    assert (last.kind, last.version, last.reason, last.by) == ("rolled_back", first, HOSTILE, "alice")
    assert site.aliases() == {"champion": first}
    assert f"champion version {first}, release 3" in log
    code, log = site.act("rollback", model=MODEL, to=str(second), reason="it was the feed")
    assert (code, site.champion()) == (0, second), log
    assert not list(site.folder.rglob("pwned"))
    assert not list(site.checkout.rglob("pwned"))


@pytest.mark.slow
def test_refresh_signs_again_what_expires_soon_through_act(site: Site) -> None:
    succeeded(site.make("promote", f"MODEL={MODEL}", f"VERSION={site.register(1)}", "APPROVE_BY=Ann"))
    before = site.store.get("channel/timestamp.json")
    code, log = site.act("refresh")
    assert code == 0, log
    assert site.store.get("channel/timestamp.json") == before  # nothing expires soon
    soon = timestamp_expiring_in_an_hour(site)
    assert json.loads(soon)["signed"]["expires"] < json.loads(before)["signed"]["expires"]
    code, log = site.act("refresh")
    assert code == 0, log
    after = json.loads(site.store.get("channel/timestamp.json"))["signed"]
    assert (after["expires"], after["version"]) > (
        json.loads(soon)["signed"]["expires"],
        json.loads(soon)["signed"]["version"],
    )
    assert f"model-{MODEL}" in log


def timestamp_expiring_in_an_hour(site: Site) -> bytes:
    """What the channel's timestamp is two days less an hour after it was signed: properly signed, nearly over."""
    store = site.store
    channel = open_channel(signing(site.keys, timestamp=1 / 24), store)
    store.delete("channel/timestamp.json")
    channel.follow(MODEL)
    return store.get("channel/timestamp.json")


@pytest.mark.slow
@pytest.mark.cloud
def test_promote_and_rollback_of_a_store_on_s3_through_act(tmp_path: Path, checkout: Path, s3_store_url: str) -> None:
    """The runner's own environment says where the object store is and who asks."""
    local = Site(tmp_path, checkout)
    first, second = local.register(1), local.register(2)
    remote = open_store(s3_store_url)
    for key in local.store.list():
        remote.put(key, local.store.get(key))
    variables = {
        "STRIKEFORGE_STORE": s3_store_url,
        "STRIKEFORGE_TRACKING": tracking_uri(tmp_path),
        "STRIKEFORGE_VENV": str(VENV),
        "STRIKEFORGE_SIGNING": "development",
    }
    for version in (first, second):
        given = {"model": MODEL, "version": str(version), "reason": "new", "approve_by": "Ann"}
        code, log = local.act("promote", variables=variables, **given)
        assert code == 0, log
    code, log = local.act("rollback", variables=variables, model=MODEL, reason="bad fills")
    assert code == 0, log
    state = Ledger(remote, MODEL).state()
    assert [release.version for release in state.releases] == [first, second, first]
    assert open_channel(signing(local.keys), remote).follow(MODEL, dry_run=True) == ()
    assert Ledger(local.store, MODEL).state().champion is None  # the folder was only copied from


@pytest.mark.slow
def test_a_refused_promotion_is_a_red_job_through_act(site: Site) -> None:
    first, poor = site.register(1), site.register(2, poor=True)
    succeeded(site.make("promote", f"MODEL={MODEL}", f"VERSION={first}", "APPROVE_BY=Ann"))
    before = site.kinds()
    code, log = site.act("promote", model=MODEL, version=str(poor), reason="hope", approve_by="Ann")
    assert code != 0
    assert "promote] Error 7" in log
    assert re.search(r"### outcome.*- accuracy: ", log, re.DOTALL), log
    assert site.kinds() == [*before, f"gated {poor}"]
    assert site.champion() == first
    code, log = site.act("promote", model=MODEL, version="1 $(touch pwned)", reason="hope", approve_by="Ann")
    assert code != 0
    assert "version: input should be a valid integer" in log
    code, log = site.act("rollback", variables={"STRIKEFORGE_VENV": str(VENV)}, model=MODEL, reason="no store")
    assert code != 0
    assert "STRIKEFORGE_STORE isn't set" in log
    assert site.kinds() == [*before, f"gated {poor}"]


def edit(path: Path, **values: Any) -> None:
    """Some keys of a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(content | values), encoding="utf-8")


@pytest.fixture
def tiny_market(tmp_path: Path, checkout: Path) -> Path:
    """A checkout whose data.dvc, in its own remote, is a market of 24 days; a net to match and a wide gate."""
    folder = tmp_path / "strikeforge"
    shutil.copytree(checkout, folder)
    market.write(market.market(), folder / "data/quotes/quotes.csv")
    (folder / "data/underlying.csv").write_text("date,close\n", encoding="utf-8")
    conf = folder / "conf"
    generic = yaml.safe_load((conf / "data/generic.yaml").read_text(encoding="utf-8"))
    (conf / "data/sample.yaml").write_text(yaml.safe_dump(generic | {"path": "data/quotes"}), encoding="utf-8")
    edit(conf / "split/sample.yaml", test_from=market.TEST_FROM, validation_dates=3)
    edit(conf / "features/default.yaml", window=5, smallest_rows=5)
    edit(conf / "model/pricing_lstm.yaml", hidden=8, context=4, head_width=8)
    edit(conf / "trainer/default.yaml", epochs=2, rows_per_snapshot=24)
    edit(conf / "hardware/auto.yaml", accelerator="cpu", threads=1)
    gates = yaml.safe_load((conf / "gate/default.yaml").read_text(encoding="utf-8"))
    easy = {"ratio": 10.0, "min_dates": 3, "baseline_significance": None}
    loose = {"accuracy": gates["accuracy"] | easy, "arbitrage": {"enabled": False}}
    edit(conf / "gate/default.yaml", **loose)
    succeeded(run(["dvc", "add", "--quiet", "data"], folder))
    succeeded(run(["dvc", "push", "--quiet", "data.dvc"], folder))
    shutil.rmtree(folder / "data")
    commit_all(folder)
    return folder


@pytest.mark.slow
def test_retrain_hands_its_version_to_promote_through_act(site: Site, tiny_market: Path) -> None:
    """All of retrain.yml on a small market: dvc pull, every stage, registration in the runner's store, promotion."""
    there = Site(site.folder, tiny_market)
    code, log = there.act("retrain", model=MODEL, promote="true", reason=HOSTILE, approve_by=HOSTILE)
    assert code == 0, log[-8000:]
    assert "Running stage 'train@pricing_lstm'" in log
    assert there.kinds() == ["registered 1", "gated 1", "promoted 1"]
    assert there.events()[-1].reason == HOSTILE
    assert f"### registered: {MODEL} version 1" in log
    assert there.aliases() == {"champion": 1}
    assert not (tiny_market / "store").exists()
