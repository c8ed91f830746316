"""Probes of frozen features during pre-training: accuracy of nearest neighbours, RankMe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.images.folders import MultiModalFolder
from multimae.images.preprocess import prepare
from multimae.inference.neighbours import Labelled, knn_accuracy, rankme
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.config.pretrain_options import PretrainConfig
from utils.data.dataset import MultiModalDataset
from utils.data.sets.class_folders import ClassEvalTransform, data_root, find_classes
from utils.data.transforms import EvalTransform
from utils.distributed.world import World
from utils.tasks.base import PeriodicEvaluator
from utils.tasks.loaders import build_dataset, eval_loader, index_finder
from utils.training.stepper import Precision

IMAGES = 4096
"""Images of a set that are encoded, evenly spread."""
NEIGHBOURS, TEMPERATURE = 20, 0.07


def build_probe(
    cfg: PretrainConfig, inputs: Sequence[Modality], world: World, precision: Precision
) -> FeatureProbe:
    """The probe of ``--probe_freq``.

    Raises:
        UserError: Nothing to probe, or samples that lack modalities.
    """
    if cfg.data.missing == "allow":
        raise UserError("probe_freq: features are those of all inputs; not with missing: allow")
    if not cfg.data.eval_data_path and not cfg.log.probe_data_path:
        raise UserError("probe_freq: set eval_data_path (RankMe) or probe_data_path (kNN)")
    return FeatureProbe(cfg, inputs, world, precision)


class FeatureProbe(PeriodicEvaluator):
    """Evaluates frozen features."""

    def __init__(
        self, cfg: PretrainConfig, inputs: Sequence[Modality], world: World, precision: Precision
    ) -> None:
        """Build the sets: ``--eval_data_path``, and ``--probe_data_path`` with its classes.

        Raises:
            UserError: A path is missing, or has no input modality or no labels.
        """
        self.world, self.precision = world, precision
        self.freq = cfg.log.probe_freq
        self.inputs, self.loaders = list(inputs), dict[str, DataLoader[Any]]()
        if cfg.data.eval_data_path:
            folder = MultiModalFolder(
                cfg.data.eval_data_path, inputs, find=index_finder(cfg, world)
            )
            transform = EvalTransform(inputs, cfg.model.input_size)
            self._add("rankme", cfg, folder, transform)
        path = cfg.log.probe_data_path
        if path:
            self.shown = _inputs_of(path, inputs)
            folder = MultiModalFolder(
                data_root(path, self.shown), self.shown, find=index_finder(cfg, world)
            )
            self._set_labels(cfg, folder)
            self._add("knn", cfg, folder, ClassEvalTransform(self.shown, cfg.model.input_size))

    def _set_labels(self, cfg: PretrainConfig, folder: MultiModalFolder) -> None:
        file = cfg.log.probe_label_file
        if not file:
            self.labels: Any = find_classes(folder)
        else:
            from multimae.inference.label_files import read_label_file

            self.labels = read_label_file(file, "class")
            self.labels.check(folder)
        if len(self.labels.names) < 2 or len(folder) < 2:
            raise UserError(f"probe_data_path: {folder.root} needs two images and two classes.")

    def _add(self, name: str, cfg: PretrainConfig, folder: MultiModalFolder, view: Any) -> None:
        dataset = build_dataset(
            MultiModalDataset, cfg, folder, view, world=self.world, limit=IMAGES
        )
        self.loaders[name] = eval_loader(cfg, dataset, self.world)

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``eval/rankme`` and ``eval/knn`` (percent)."""
        values = {}
        if "rankme" in self.loaders:
            values["eval/rankme"] = rankme(self._features("rankme", model, self.inputs)[0])
        if "knn" in self.loaders:
            x, names = self._features("knn", model, self.shown)
            data = Labelled(x, self.labels.targets(names, x.device))
            scores = knn_accuracy(
                data, data, len(self.labels.names), [NEIGHBOURS], TEMPERATURE, leave_one_out=True
            )
            values["eval/knn"] = next(iter(scores.values()))["acc1"]
        return values

    def _features(
        self, which: str, model: Any, inputs: Sequence[Modality]
    ) -> tuple[Tensor, list[str]]:
        """Mean of the patch tokens (n, D) of all images on every rank, and their names."""
        loader = self.loaders[which]
        dataset = loader.dataset
        assert isinstance(dataset, MultiModalDataset)
        names = [dataset.name(i) for i in range(len(dataset))]
        rows = {name: i for i, name in enumerate(names)}
        width = model.global_tokens.shape[-1]
        x = torch.zeros(len(names), width, device=self.world.device)
        for loaded in loader:
            batch = loaded.to(self.world.device)
            with self.precision.autocast():
                pooled = model.encode(prepare(batch.images, inputs), pool="mean")
            x[[rows[name] for name in batch.names]] = pooled.float()
        return self.world.sum(x), names


def _inputs_of(path: str, inputs: Sequence[Modality]) -> list[Modality]:
    """Inputs that have a folder in ``path`` or are its last part."""
    found = [m for m in inputs if (data_root(path, [m]) / m.data_folder).is_dir()]
    if not found:
        names = ", ".join(m.data_folder for m in inputs)
        raise UserError(f"probe_data_path: {path} has none of the folders {names}.")
    return found
