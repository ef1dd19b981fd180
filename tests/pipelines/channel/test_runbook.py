"""Every command of docs/runbook-signing.md, typed as it stands there, from an empty store to the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.folder_store import FolderStore
from tests.pipelines.channel.desk import Host, promote

PROJECT = Path(__file__).resolve().parents[3]
RUNBOOK = PROJECT / "docs/runbook-signing.md"
MODEL = "pricing_lstm"


def sections() -> dict[str, str]:
    """The commands of each section that has some."""
    found = {}
    for section in RUNBOOK.read_text().split("\n## ")[1:]:
        if blocks := re.findall(r"```sh\n(.*?)```", section, re.S):
            found[section.partition("\n")[0]] = "".join(blocks)
    return found


def test_every_command_of_the_package_is_in_the_runbook() -> None:
    verbs = {path.stem for path in (PROJECT / "pipelines/channel").glob("*.py") if "__main__" in path.read_text()}
    typed = set(re.findall(r"python -m pipelines\.channel\.(\w+)", "".join(sections().values())))
    assert typed == verbs


@pytest.mark.slow
def test_the_runbook_works_as_it_is_typed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STRIKEFORGE_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "STRIKEFORGE_STORE": str(store.root),
    }
    told = ""
    numbers = {}
    for title, commands in sections().items():
        script = f"set -eu\n[ ! -f before.sh ] || . ./before.sh\n{commands}export -p > before.sh\n"
        done = subprocess.run(
            ["bash", "-c", script.replace("/media/", f"{tmp_path}/media/")],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{title}:\n{done.stdout}{done.stderr}"
        told += done.stdout + done.stderr
        if title == "A model comes in":
            promote(store, MODEL, 1)
            after = subprocess.run(
                ["bash", "-c", ". ./before.sh; python -m pipelines.channel.refresh signing=production"],
                cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
            )  # fmt: skip
            assert f"model-{MODEL}: release none -> 1" in after.stdout
        if store.list("ledger/"):
            numbers[title] = Host(store, tmp_path / "host", (tmp_path / "root.json").read_bytes()).number(MODEL)
        elif (first := tmp_path / "keys/production/public/channel/1.root.json").exists():
            (tmp_path / "root.json").write_bytes(first.read_bytes())
    assert set(numbers.values()) == {1}, "one host, given root 1, follows through everything"
    assert {"A key leaked", "Disaster drill", "A key is lost (and nobody has it)"} <= set(numbers)
    for private in (tmp_path / "media").rglob("*.pem"):
        assert "".join(private.read_text().split("\n")[1:2]) not in told
