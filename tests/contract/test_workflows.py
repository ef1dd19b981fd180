"""What the release workflows do when act runs them on this machine, and make by itself (workflow_site.py).

Not covered: GitHub's own part (reviewers of the environment, queues, the schedule).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.channel.publish import open_channel
from serving.blobstore import open_store
from serving.ledger import Ledger
from tests.contract.workflow_site import HOSTILE, MODEL, ROOT, VENV, Site, checkout, commit_all, run, site, succeeded
from tests.pipelines import market
from tests.pipelines.channel.desk import signing
from tests.tiny_registry import tracking_uri

__all__ = ["checkout", "site"]  # fixtures


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
