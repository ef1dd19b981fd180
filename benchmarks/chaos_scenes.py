"""Starting states, made once, and cheap copies of them to do harm in.

In: a fork server and the stories (chaos_acts.py). Out: a `Scene` per story: its state, what was true before, and what
an undisturbed act makes true.
Invariant: a scene is never written after it was made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_acts import STORIES
from benchmarks.chaos_checks import Facts
from benchmarks.chaos_places import Place, copy_local
from benchmarks.chaos_worker import ForkServer


@dataclass(frozen=True)
class Scene:
    """A story's beginning, in a folder, with the truth before and after."""

    name: str
    place: Place
    before: Facts
    after: Facts


def make_scenes(server: ForkServer, folder: Path, names: Sequence[str]) -> dict[str, Scene]:
    """The scenes of these stories and of those they come after, by name."""
    scenes: dict[str, Scene] = {}
    for name, story in STORIES.items():
        if name not in names and all(STORIES[wanted].after != name for wanted in names):
            continue
        place = Place.local(folder / name)
        if story.after is not None:
            copy_local(scenes[story.after].place, place)
        else:
            place.folder.mkdir(parents=True)
        server.call("benchmarks.chaos_acts:prepare", name, place).value()
        before: Facts = server.call("benchmarks.chaos_checks:facts", place).value()
        done = copy_local(place, Place.local(folder / f"{name}-done"))
        server.call("benchmarks.chaos_acts:act", name, done, {}).value()
        after: Facts = server.call("benchmarks.chaos_checks:facts", done).value()
        shutil.rmtree(done.folder)
        scenes[name] = Scene(name, place, before, after)
    return {name: scene for name, scene in scenes.items() if name in names}
