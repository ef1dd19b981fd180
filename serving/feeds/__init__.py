"""Where ticks come from: files replayed, multicast lines, packet rings; each writes records into a ring."""
