"""What would have to be signed for the channel to say what the ledgers say: decided before any key is touched.

Data in: a `View`, ledgers. Data out: `Draft`, without lines if nothing is to be done.
Invariants: a model's ledger is read after the view and checked against it; a channel that is new, or whose snapshot
was signed with keys an earlier root named, is signed anew for every model, since what such a snapshot says of them
can't be relied on; a problem with another model than the one asked for stops nobody: its entry stays as it is, and the
problem is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuf.api.metadata import TargetFile, Targets

from pipelines.channel import documents
from pipelines.channel.content import check_fence, is_released, released_number, targets_of, wanted
from pipelines.channel.metadata import Held, T, View, delegated_roles, is_delegated, read_model
from pipelines.channel.workbench import Workbench, not_delegated
from pipelines.errors import SigningError
from serving.errors import StrikeforgeError
from serving.release import ReleaseFile, role_of

PREFIX = role_of("")


@dataclass(frozen=True)
class ModelChange:
    """What a model's role is to say, and the change in words."""

    release: ReleaseFile | None
    targets: Mapping[str, TargetFile]
    line: str


@dataclass
class Draft:
    """Everything to be signed; `lines` say it in words, `problems` what can't be said of other models."""

    lines: list[str] = field(default_factory=list)
    problems: list[StrikeforgeError] = field(default_factory=list)
    renew_root: bool = False
    renew_targets: bool = False
    delegate: list[str] = field(default_factory=list)  # models that a development channel lets in
    models: dict[str, ModelChange] = field(default_factory=dict)  # by role
    snapshot: bool = False


def plan(bench: Workbench, view: View, models: Sequence[str] | None) -> Draft:
    """What is to be signed so that `models` (None: all) are as their ledgers say, and nothing expires soon.

    Errors as in `Channel.follow`, for the models asked for.
    """
    draft = Draft()
    founded = not bench.lacks_foundation(view) or view.targets is not None
    roles = delegated_roles(bench.targets_of(view)) if founded else []
    there = [role.removeprefix(PREFIX) for role in roles]
    for model in _scope(bench, view, models, there):
        asked = models is not None and model in models
        try:
            change = _model_change(bench, view, model, asked=asked)
        except StrikeforgeError as error:
            if asked:
                raise
            if model in there:
                draft.problems.append(error)
            else:
                draft.lines.append(f"{role_of(model)}: not published: {error}")
            continue
        if change is not None:
            draft.models[role_of(model)] = change
            if model not in there:
                draft.delegate.append(model)
            draft.lines.append(f"{role_of(model)}: {change.line}")
    if view.roots or draft.models:
        _renewals(bench, view, draft, by_refresh=models is None)
    return draft


def _scope(bench: Workbench, view: View, models: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The models to look at, those asked for first."""
    scope = list(models or ())
    if models is None or not view.settled:
        scope += there
    if bench.is_development and view.snapshot is None:
        scope += [key.split("/")[1] for key in bench.store.list("ledger/")]
    return list(dict.fromkeys(scope))


def _model_change(bench: Workbench, view: View, model: str, *, asked: bool) -> ModelChange | None:
    """What the model's role has to say, if that isn't what it says."""
    role = role_of(model)
    says = wanted(bench.store, model)
    published = read_model(bench.store, view, role)
    held = published.signed if published is not None else None
    check_fence(bench.store, says, held)
    current = held is not None and is_released(says, held)
    if published is not None and current and not _is_due(bench, role, published):
        return None
    by = view.targets.signed if view.targets is not None and is_delegated(view.targets.signed, role) else None
    was_named = view.snapshot is not None and f"{role}.json" in view.snapshot.signed.meta
    if says.release is None and not was_named and (view.snapshot is not None or by is None):
        return None  # no champion yet, and no host was told otherwise
    if by is None and not bench.is_development:
        raise not_delegated(model)
    if by is not None and not asked:
        try:
            bench.check_keys(by, role)
        except SigningError as error:
            if says.release is None and not was_named:
                return None  # nothing to say, and nobody here who could say it
            raise SigningError(f"{role}: stays as it was; {error}") from error
    said = targets_of(bench.store, says.release) if says.release is not None else {}
    return ModelChange(says.release, said, _in_words(says.release, held, model, current=current))


def _in_words(release: ReleaseFile | None, held: Targets | None, model: str, *, current: bool) -> str:
    if current:
        return "renewed"
    if release is None:
        return "made, without a release"
    before = released_number(held, model)
    if before == release.release:
        return f"release {before}, said anew"
    return f"release {'none' if before is None else before} -> {release.release}"


def _renewals(bench: Workbench, view: View, draft: Draft, *, by_refresh: bool) -> None:
    """Mark the roles that no release changes but that have to be signed, with a line for each.

    A refresh that runs every day has to renew a timestamp of two days every day: with a third of its life left it
    would be spared on the first day and have expired on the second.
    """
    if bench.is_development and view.roots:
        draft.renew_root = _is_due(bench, "root", view.roots[-1])
        draft.renew_targets = _is_due(bench, "targets", view.targets)
        for role, yes in (("root", draft.renew_root), ("targets", draft.renew_targets)):
            draft.lines += [f"{role}: renewed"] if yes else []
    if view.snapshot is None:
        draft.snapshot = True
        draft.lines.append("snapshot and timestamp: made")
        return
    assert view.targets is not None
    named = view.snapshot.signed.meta["targets.json"].version
    if named != view.targets.version:
        draft.lines.append(f"targets: version {named} -> {view.targets.version}")
    draft.snapshot = bool(draft.models or draft.delegate or draft.renew_targets or named != view.targets.version)
    if not view.settled:
        draft.snapshot = True
        draft.lines.append(f"snapshot and timestamp: signed as root {view.root.version} wants it")
    elif not draft.snapshot and _is_due(bench, "snapshot", view.snapshot):
        draft.snapshot = True
        draft.lines.append("snapshot: renewed")
    elif not draft.snapshot and _is_due(bench, "timestamp", view.timestamp, 2 / 3 if by_refresh else 1 / 3):
        draft.lines.append("timestamp: renewed")


def _is_due(bench: Workbench, role: str, held: Held[T] | None, share_left: float = 1 / 3) -> bool:
    lifetime = bench.signing.lifetime(role)
    return held is not None and documents.is_due(held, lifetime, bench.now(), share_left=share_left)
