"""A copy of the tracked files with a store and an MLflow of its own, where make and act run as on a runner.

act skips actions/checkout for a local repository; actions/setup-python and actions/upload-artifact, which would come
from the network, are replaced by empty ones, and the environment is the one the tests run in (repository variable
STRIKEFORGE_VENV). Everything else is what a runner does: conditions, inputs, environment, every `run:` step, the call
of one workflow by the other.
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

import pytest

from pipelines.register import register
from pipelines.registry import open_registry
from serving.events import Event
from serving.folder_store import FolderStore
from serving.ledger import Ledger, State
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
