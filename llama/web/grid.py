"""Putting samples into the cells of a grid of series and steps, as `AGGREGATE` says. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llama.web.store import AGGREGATE, Column


def put_together(name: str, place: npt.NDArray[np.int64], values: Column, size: int) -> Column:
    """Return ``size`` cells of column ``name``; ``place`` says into which each value goes.

    NaN values are no samples; a cell without any is NaN.
    """
    real = ~np.isnan(values)
    place, values = place[real], values[real]
    spoke = np.bincount(place, minlength=size) > 0
    how = AGGREGATE[name]
    if how == "sum":
        cells = np.bincount(place, values, size).astype(np.float64)
    elif how == "or":
        bits = np.zeros(size, dtype=np.int64)
        np.bitwise_or.at(bits, place, values.astype(np.int64))
        cells = bits.astype(np.float64)
    elif how == "max":
        cells = np.full(size, -np.inf)
        np.maximum.at(cells, place, values)
    else:
        cells = np.full(size, np.inf)
        np.minimum.at(cells, place, values)
    return np.where(spoke, cells, np.nan)
