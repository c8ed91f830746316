"""Which number format the model computes in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler


@dataclass(frozen=True)
class Precision:
    """Autocast type of a run; ``None`` is float32 throughout."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """Context for a forward pass."""
        return torch.autocast(
            self.device_type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )

    def scaler(self) -> GradScaler:
        """Loss scaler: active for fp16 only."""
        return GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        """Short name for logs."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.dtype, "fp32")  # type: ignore[arg-type]


def choose_precision(name: str, device: torch.device) -> Precision:
    """Precision by flag.

    Args:
        name: ``bf16``, ``fp16``, ``fp32`` or ``auto``: bf16 on GPUs that have it, else fp16 on
            GPUs, float32 on the CPU (where bf16 pays only with hardware support).
        device: Where the model computes.
    """
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[name]
    return Precision(device.type, dtype)
