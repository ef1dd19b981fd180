"""A lost or damaged channel is made anew: kept root and targets, everything else signed from the ledgers.

Data in: the keys folder's public material, ledgers, online keys. Data out: `channel/`, `releases/`.
Invariants: no offline key is needed; hosts go on with the root they have and accept the new metadata, which is newer
than any they have seen; what the store's ledgers don't hold can't be brought back from here.

Run: python -m pipelines.channel.restore signing=production [dry_run=true]
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.channel.commands import ChannelCommand, channel_command
from pipelines.channel.publish import StoreChannel


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Restore the channel of the store."""
    return StoreChannel(cfg.bench).rebuild(dry_run=cfg.dry_run)


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("uri",)))
