"""The disaster drill of docs/operations.md, as it is typed: MLflow and channel are lost, and a host doesn't notice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contract.workflow_site import MODEL, VENV, Site, checkout, run, site, succeeded
from tests.tiny_registry import tracking_uri

__all__ = ["checkout", "site"]  # fixtures

ROOT = Path(__file__).parents[2]


def drill() -> list[str]:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    block = re.search(r"## Disaster drill.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line.partition("  #")[0].rstrip() for line in block[1].splitlines()]


@pytest.mark.slow
def test_the_disaster_drill(site: Site) -> None:
    first, second = site.register(1), site.register(2)
    for version in (first, second):
        succeeded(site.make("promote", f"MODEL={MODEL}", f"VERSION={version}", "APPROVE_BY=Ann"))
    succeeded(site.make("rollback", f"MODEL={MODEL}", "REASON=bad fills"))
    here = {"STRIKEFORGE_STORE": f"{site.folder}/store", "STRIKEFORGE_TRACKING": tracking_uri(site.folder)}
    root = site.keys / "public/channel/1.root.json"
    pull = [VENV / "bin/strikeforge-host", "pull", "--model", MODEL, "--store", f"{site.folder}/store", "--root", root,
            "--to", "host", "--development"]  # fmt: skip
    assert "release 3" in succeeded(run(pull, site.folder))

    lines = drill()
    assert len(lines) == 5
    printed = []
    for line in lines:
        where = site.checkout if "make" in line or "python" in line else site.folder
        words = line.replace("make ", f"make VENV={VENV} ")
        environment = here | {"STRIKEFORGE_KEYS": str(site.keys)}
        printed.append(succeeded(run(["bash", "-c", words], where, **environment)))
    assert f"champion version {first}, release 3" in printed[0]
    assert not (site.folder / "store/mlflow.db").exists()
    assert "MLflow: version 1 made again" in printed[3]
    assert site.aliases() == {"champion": first}
    assert sorted(site.store.list("channel/")) != []
    assert "release 3" in succeeded(run(pull, site.folder))  # the host that saw the old channel goes on
    assert "release 3" in succeeded(run([*pull[:-2], "another", "--development"], site.folder))
