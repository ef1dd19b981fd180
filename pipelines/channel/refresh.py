"""What of the channel expires soon is signed anew; what refresh.yml runs every day.

Data in: channel, ledgers, online keys. Data out: metadata of models and snapshot in the last third of their lives, the
timestamp after the first third; in a development channel root and targets as well. Invariants: run any number of times,
also beside promotions; offline keys aren't needed; that root or targets need a ceremony is said, and is an error once
they have expired; that a release soon expires, which only a decision mends, is said.

Run: python -m pipelines.channel.refresh signing=production [dry_run=true]
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.channel.commands import ChannelCommand, channel_command
from pipelines.channel.publish import StoreChannel
from pipelines.channel.status import offline_warnings, release_warnings


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Refresh the channel of the store."""
    bench = cfg.bench
    lines = StoreChannel(bench).refresh(dry_run=cfg.dry_run)
    view = bench.view()
    return [*lines, *release_warnings(bench, view), *offline_warnings(bench, view)]


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run))
