"""How every figure looks: the style, one colour, marker and dashes per predictor, PNG bytes.

In: nothing, or a predictor's name. Out: style values and helpers for pipelines/plots*.py.
Invariants: no global matplotlib state is left behind (no pyplot; the style is a context); the model has one colour in
all figures, and so has each family where several are drawn. Source of the baselines' palette: M. Okabe, K. Ito, "Color
universal design" (2008).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

from pipelines.config import FAMILIES
from pipelines.metrics import MODEL

STYLE: Any = {  # Any: matplotlib types the keys as a list of 300 literals
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 130.0,
}
MODEL_COLOUR = "#D55E00"
FAMILY_COLOURS = (MODEL_COLOUR, "#6A3D9A", "#00707A", "#A6192E", "#5B7F00")  # where several families are drawn
FAMILY_MARKERS = ("o", "D", "s", "^", "v")
OTHER_COLOUR = "#7fa8c9"  # bars of baselines
MARKET_COLOUR = "#4d4d4d"
BASELINE_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#000000", "#882255", "#999933")
DASHES = ("--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), ":", (0, (6, 1, 1, 1)),
          (0, (2, 2)))  # fmt: skip
MARKERS = ("s", "^", "D", "v", "P", "X", "*", "p", "h")
USUAL_ORDER = (
    "anchored_sticky_strike",
    "sticky_strike",
    "regression_anchored",
    "lightgbm_anchored",
    "sticky_moneyness",
    "flat",
    "black_scholes_realised",
    "lightgbm_same_inputs",
    "anchored_at_their_forward",
)
LABELS = {
    "black_scholes_realised": "Black-Scholes realised vol",
    "lightgbm_anchored": "LightGBM anchored",
    "lightgbm_same_inputs": "LightGBM, same inputs",
    "anchored_at_their_forward": "anchored, at the anchors' forward",
}

Parameters = ParamSpec("Parameters")


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw under STYLE, leaving matplotlib's own settings alone."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; drawing it again gives the same bytes (the first drawing settles the layout)."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")
    return buffer.getvalue()


def is_ours(predictor: str) -> bool:
    """Whether it is a net of ours and no baseline: "model" in its own evaluation, its family's name beside others."""
    return predictor == MODEL or predictor in FAMILIES


def label(predictor: str) -> str:
    """Name for readers; a family's is the one that is typed."""
    if predictor in FAMILIES:
        return predictor
    return LABELS.get(predictor, predictor.replace("_", " "))


def look(predictor: str, known: list[str]) -> dict[str, Any]:
    """Colour, marker and dashes of a predictor; a baseline nobody foresaw takes the next free ones."""
    if is_ours(predictor):
        place = 0 if predictor == MODEL else list(FAMILIES).index(predictor) % len(FAMILY_COLOURS)
        return {"color": FAMILY_COLOURS[place], "linestyle": "-", "marker": FAMILY_MARKERS[place], "linewidth": 2.2,
                "zorder": 5}  # fmt: skip
    order = [*USUAL_ORDER, *(name for name in known if name not in USUAL_ORDER and not is_ours(name))]
    place = order.index(predictor) % len(MARKERS)
    return {"color": BASELINE_COLOURS[place], "linestyle": DASHES[place], "marker": MARKERS[place], "linewidth": 1.2}
