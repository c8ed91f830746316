"""Depth and labels of a photo by pseudo-labelling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from multimae.images.pixels import Pixels
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.app.scenes import Scene
from tools.labelling.labellers import ClassCountError, Labeller, as_tensor, build_labeller
from tools.labelling.options import LabelModelOptions
from utils.training.stepper import choose_precision


@dataclass
class PhotoLabeller:
    """Transformers models that predict the other modalities of a photo; loaded on first use.

    Attributes:
        depth_model: Name or folder of the model of one-channel images; empty: none.
        seg_model: Of the model of labels; empty: none.
    """

    depth_model: str = ""
    seg_model: str = ""
    _loaded: dict[str, Labeller] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def label(
        self, scene: Scene, inputs: Sequence[Modality]
    ) -> tuple[dict[str, Pixels], list[str]]:
        """Predict the inputs that a photo lacks.

        Args:
            scene: The image.
            inputs: Inputs of all models.

        Returns:
            Pixels by modality, and a sentence about each model that cannot be used.

        Raises:
            UserError: There is no photo, nothing to add, or no model that can.
        """
        if not self.depth_model and not self.seg_model:
            raise UserError(
                "No model predicts depth or labels here: start the page with --depth_model and "
                "--seg_model, names or folders of transformers models."
            )
        photo = next((m for m in inputs if m.is_photo and m.name in scene.pixels), None)
        if photo is None:
            raise UserError("Depth and labels are predicted from a photo: upload one first.")
        missing = [m for m in inputs if m.name not in scene.pixels and self._model_of(m)]
        if not missing:
            raise UserError("This image has all that the models here can predict.")
        small = scene.small[photo.name]
        image = small if isinstance(small, Image.Image) else Image.fromarray(small)
        found: dict[str, Pixels] = {}
        problems: list[str] = []
        with self._lock:
            for m in missing:
                try:
                    found[m.name] = self._predict(image, m)
                except UserError as err:
                    problems.append(str(err))
        if not found:
            raise UserError(" ".join(problems))
        return found, problems

    def _model_of(self, m: Modality) -> str:
        """Name of the model of a modality; empty if there is none."""
        if m.is_labels:
            return self.seg_model
        return self.depth_model if m.num_channels == 1 and not m.source else ""

    def _predict(self, image: Image.Image, m: Modality) -> Pixels:
        if m.name not in self._loaded:
            options = LabelModelOptions(depth_model=self.depth_model, semseg_model=self.seg_model)
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            precision = choose_precision("auto", device)
            try:
                self._loaded[m.name] = build_labeller(m, options, device, precision)
            except ClassCountError as err:
                raise UserError(
                    f"{m.name}: {self.seg_model} does not predict the {m.num_classes} classes of "
                    "these weights. Choose a --seg_model that does."
                ) from err
        labeller = self._loaded[m.name]
        size = labeller.shapes.input_size(*image.size)
        inputs = as_tensor(image.resize(size, Image.Resampling.BICUBIC))
        (result,) = labeller.label(inputs[None], [(image.height, image.width)])
        if isinstance(result, str):
            raise UserError(f"{labeller.name}: {result}.")
        return result
