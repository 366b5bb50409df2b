"""Where and in which precision the networks run, and how a network is made ready for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.detect.nets.blocks import fold_batch_norms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from pipeline.detect.resample import Preprocessing


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and the number format of the convolutions on it."""

    device: torch.device
    dtype: torch.dtype

    def place(self, net: nn.Module) -> None:
        """Make a network ready for inference: batch norms folded, weights moved and cast, in place."""
        net.eval().requires_grad_(False)
        fold_batch_norms(net)
        net.to(self.device, self.dtype)
        for parameter in net.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    def tensor(self, hu: NDArray[np.int16], preprocessing: Preprocessing) -> torch.Tensor:
        """Bring boxes ``(n, z, y, x)`` in HU to the device, as ``(n, 1, z, y, x)`` in the networks' range."""
        there = torch.from_numpy(hu).to(self.device)
        values = preprocessing.normalise(there).to(self.dtype)
        return values[:, None].contiguous(memory_format=torch.channels_last_3d)


def choose(device: str, precision: str) -> Placement:
    """Choose by what the machine has; the choice depends on nothing that changes from run to run.

    Parameters
    ----------
    device
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    precision
        ``auto`` (bfloat16 where the hardware multiplies it), ``float32`` or ``bfloat16``.

    Raises
    ------
    ValueError
        When the device is not there, or a word is unknown.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"Device '{device}' is not there: this machine shows no CUDA device; use 'auto' or 'cpu'.")
    try:
        chosen = torch.device(name)
        dtype = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"Device '{device}' with precision '{precision}' is unknown; use auto, cpu or cuda, "
            "and auto, float32 or bfloat16."
        ) from error
    return Placement(chosen, dtype or (torch.bfloat16 if has_fast_bfloat16(chosen) else torch.float32))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bfloat16 itself; emulation would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for this instruction set; the private one exists from 2.6 on
    return bool(torch.cpu._is_avx512_bf16_supported())
