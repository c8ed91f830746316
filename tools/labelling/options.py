"""The configuration of ``tools/pseudo_label.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from multimae.images.pixels import ImageError, check_readable
from multimae.specs.modalities import Modality, ModalityTable, make_table, select
from utils.config.fields import option
from utils.config.options import default_device, device_problems

DepthKind = Literal["auto", "inverse", "depth"]
LinkChoice = Literal["symlink", "hard", "copy", "none"]


@dataclass(frozen=True)
class LabelDataOptions:
    """Data: input and output."""

    data_path: str = option("", "RGB images, NAME.EXT or SUB-FOLDER/NAME.EXT")
    out: str = option("", "Data root to write: OUT/MODALITY/SUB-FOLDER/NAME.png")
    tasks: tuple[str, ...] = option(
        ("depth", "semseg"), "Modalities to predict: one-channel images (depth) and labels"
    )
    link: LinkChoice = option("symlink", "How to put the RGB images into OUT/rgb")
    modalities: Mapping[str, Any] = option(
        dict, "Changes to the modality table, as in the pre-training config"
    )
    overwrite: bool = option(False, "Rewrite existing files")
    num_workers: int = option(4, "Loader processes per GPU", within="[0, inf)")

    def table(self) -> ModalityTable:
        """The modality table."""
        return make_table(self.modalities)

    @property
    def source(self) -> Modality:
        """Row of the images that are read."""
        return self.table()["rgb"]

    @property
    def task_modalities(self) -> list[Modality]:
        """Rows of the tasks."""
        return select(self.table(), self.tasks)

    def problems(self) -> Iterator[str]:
        """Missing paths, and tasks that no model predicts."""
        if not self.data_path:
            yield "data_path: missing; set the folder of RGB images"
        if not self.out:
            yield "out: missing; set the data root to write"
        if not self.tasks:
            yield "tasks: empty; set at least one modality, such as depth"
        try:
            source, modalities = self.source, self.task_modalities
        except ValueError as err:
            yield from (f"tasks: {line}" for line in str(err).splitlines())
            return
        for modality in modalities:
            if not modality.is_labels and (modality.num_channels != 1 or modality.source):
                yield f"tasks: '{modality.name}' is neither labels nor a one-channel image"
            try:
                check_readable(modality)
            except ImageError as err:
                yield f"tasks: {err}"
        nested = Path(self.data_path) / source.data_folder
        if self.data_path and nested.is_dir():
            yield f"data_path: has a sub-folder {nested}; use that one"


@dataclass(frozen=True)
class LabelModelOptions:
    """Models: a name on the Hugging Face Hub, or a folder."""

    depth_model: str = option(
        "depth-anything/Depth-Anything-V2-Small-hf", "Model of one-channel images"
    )
    semseg_model: str = option(
        "facebook/mask2former-swin-base-coco-panoptic",
        "Model of labels: one that predicts masks with classes (Mask2Former, MaskFormer)",
    )
    depth_output: DepthKind = option(
        "auto", "What the depth model predicts: inverse depth or depth; auto: as its config says"
    )
    depth_size: int | None = option(
        None,
        "Shorter side of the depth model's input; none: as it was made for",
        within="[32, inf)",
    )
    semseg_size: int | None = option(
        None,
        "Shorter side of the label model's input; none: as it was made for",
        within="[32, inf)",
    )


@dataclass(frozen=True)
class LabelRuntimeOptions:
    """Run."""

    batch_size: int = option(16, "Images per batch and GPU", within="[1, inf)")
    device: str = option(default_device, "cuda, cuda:N, cpu or mps")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "Autocast type of the models; auto: the best the device has"
    )
    num_threads: int | None = option(
        None, "CPU threads of PyTorch; none: its own", within="[1, inf)"
    )

    def problems(self) -> Iterator[str]:
        """Devices that do not exist in PyTorch."""
        yield from device_problems(self.device)


@dataclass(frozen=True)
class LabelConfig:
    """Make the depth and label images of pre-training from RGB images."""

    data: LabelDataOptions = field(default_factory=LabelDataOptions)
    models: LabelModelOptions = field(default_factory=LabelModelOptions)
    runtime: LabelRuntimeOptions = field(default_factory=LabelRuntimeOptions)
