"""Equation 2 of the paper: how the second stage writes a nodule's centre and diameter down.

Everything is in millimetres (decision 0010): with voxels on one side every diameter would be wrong by a constant
factor, silently. Order is z, y, x, d. References: Dou et al., MICCAI 2017, equation 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LARGEST_SHIFT = 0.5
"""Decoded shifts stay within half of the way to the patch's face."""

DIAMETERS_MM = (2.0, 40.0)
"""Decoded diameters stay within this range."""

WILD = 10.0
"""Logarithms above this are cut before they overflow."""


def encode(
    truth_zyx_mm: ArrayLike, diameter_mm: ArrayLike, proposal_zyx_mm: ArrayLike, size_zyx_mm: ArrayLike
) -> NDArray[np.float64]:
    """Write nodules as targets relative to their patches: T = 2 (G - P) / S, T_d = ln(G_d / |S|).

    Parameters
    ----------
    truth_zyx_mm, diameter_mm
        Centres ``(..., 3)`` and diameters ``(...)`` of the nodules; mm.
    proposal_zyx_mm
        Centres of the patches ``(..., 3)``; mm, same axes.
    size_zyx_mm
        Size of the patch; mm.

    Returns
    -------
    NDArray
        T_z, T_y, T_x, T_d, shape ``(..., 4)``; T = +1 means a centre on the patch's positive face.
    """
    size = np.asarray(size_zyx_mm, np.float64)
    shift = 2.0 * (np.asarray(truth_zyx_mm, np.float64) - np.asarray(proposal_zyx_mm, np.float64)) / size
    log_diameter = np.log(np.asarray(diameter_mm, np.float64) / np.linalg.norm(size))
    return np.concatenate([shift, log_diameter[..., None]], axis=-1)


def decode(
    target: ArrayLike, proposal_zyx_mm: ArrayLike, size_zyx_mm: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read nodules back from targets: G = P + T S / 2, G_d = exp(T_d) |S|, both clamped.

    Parameters
    ----------
    target
        T_z, T_y, T_x, T_d, shape ``(..., 4)``.
    proposal_zyx_mm, size_zyx_mm
        As in :func:`encode`.

    Returns
    -------
    NDArray, NDArray
        Centres ``(..., 3)`` and diameters ``(...)``; mm.
    """
    values, size = np.asarray(target, np.float64), np.asarray(size_zyx_mm, np.float64)
    shift = np.clip(values[..., :3], -LARGEST_SHIFT, LARGEST_SHIFT)
    centre = np.asarray(proposal_zyx_mm, np.float64) + shift * size / 2.0
    diameter = np.exp(np.minimum(values[..., 3], WILD)) * np.linalg.norm(size)
    return centre, np.clip(diameter, *DIAMETERS_MM)
