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
        name: ``bf16``, ``fp16``, ``fp32`` or ``auto``: bf16 where the hardware computes in it,
            else fp16 on GPUs and float32 on CPUs (where emulated bf16 is a hundred times slower).
        device: Where the model computes. On GPUs ``fp32`` also keeps convolutions from rounding to
            TF32, which torch lets them do.
    """
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device.type == "cpu" and _cpu_computes_bf16():
            name = "bf16"
    if name == "fp32" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[name]
    return Precision(device.type, dtype)


def _cpu_computes_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices itself (AVX-512 BF16 or AMX)."""
    # Without this function (before torch 2.10) nothing tells, and float32 is never wrong.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
