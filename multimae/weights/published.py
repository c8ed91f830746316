"""Weights that the authors published (Bachmann et al. 2022), CC-BY-NC 4.0."""

from __future__ import annotations

from typing import NamedTuple

RELEASE = "https://github.com/EPFL-VILAB/MultiMAE/releases/download/pretrained-weights"
LICENCE = "CC-BY-NC 4.0: not for commercial use, also after conversion or fine-tuning"


class Published(NamedTuple):
    """A file of the release; its name ends with the first digits of its SHA-256."""

    file: str
    content: str
    layout: str

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{RELEASE}/{self.file}"

    @property
    def digest(self) -> str:
        """Start of the SHA-256, in hexadecimal."""
        return self.file.rpartition("-")[2].partition(".")[0]


PUBLISHED = (
    Published(
        "multimae-b_98_rgb+-depth-semseg_1600e_multivit-afff3f8c.pth",
        "MultiMAE-B: rgb, depth, semseg; 1,600 epochs, 98 visible patches",
        "MultiMAE",
    ),
    Published(
        "multimae-b_98_rgb+-depth-semseg_1600e_timm-bafa5499.pth",
        "MultiMAE-B: the encoder for rgb",
        "timm ViT",
    ),
    Published(
        "mae-b_dec512d8b_1600e_multivit-c477195b.pth",
        "MAE-B: rgb; 1,600 epochs",
        "MultiMAE",
    ),
    Published(
        "mae-b_dec512d8b_1600e_timm-f74f3a8d.pth",
        "MAE-B: the encoder",
        "timm ViT",
    ),
)


def published_lines() -> list[str]:
    """What ``multimae info --published`` prints."""
    lines = [f"Weights of the authors. {LICENCE}."]
    for each in PUBLISHED:
        lines += [
            "",
            each.content,
            f"  {each.url}",
            f"  SHA-256 {each.digest}..., names of {each.layout}",
        ]
    first = PUBLISHED[0].url
    return [
        *lines,
        "",
        "A photo filled in from a sixth of its patches, and its predicted depth and labels:",
        f"  multimae predict {first} photo.jpg --out filled",
    ]
