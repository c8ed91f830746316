"""Label the images of a folder that belong to this process; existing labels are kept."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from tools.common.jobs import MAX_PROBLEMS, PRESENT, WRITTEN
from tools.common.staging import write_file
from tools.common.target_folder import Target
from tools.labelling.image_batches import (
    LabelBatch,
    PendingImage,
    PendingImages,
    SizeBatcher,
    Task,
    load_images,
)
from tools.labelling.labellers import ClassLabeller, Labeller, build_labeller
from tools.labelling.options import LabelConfig, LabelDataOptions, LabelRuntimeOptions
from tools.labelling.png_writers import PngWriters, remove_stale_files
from utils.distributed.world import World
from utils.training.stepper import choose_precision


def independent_world(options: LabelRuntimeOptions) -> World:
    """Rank, world size and device of this process, without a process group.

    Processes work independently and may finish hours apart, beyond the timeouts of a group.

    Raises:
        UserError: The device does not exist.
    """
    rank, size, local = (int(os.environ.get(n, d)) for n, d in _TORCHRUN)
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: this PyTorch sees no GPU; try --device cpu")
        if size > 1:
            device = torch.device("cuda", local)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    return World(rank, size, device)


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def source_folder(data: LabelDataOptions) -> MultiModalFolder:
    """The images to label.

    Raises:
        UserError: The folder is missing or empty, or two images have the same name.
    """
    path = Path(data.data_path).resolve()
    return MultiModalFolder(path.parent, [replace(data.source, folder=path.name)])


class FolderLabeller:
    """One process's share of the work."""

    def __init__(self, cfg: LabelConfig, world: World) -> None:
        """List the images and load the models.

        Raises:
            UserError: Invalid folders or models, or the target has labels of other models.
        """
        self.cfg, self.world, self.out = cfg, world, Path(cfg.data.out)
        self.folder = source_folder(cfg.data)
        precision = choose_precision(cfg.runtime.precision, world.device)
        self.labellers: dict[Task, Labeller] = {}
        self.targets: dict[Task, Target] = {}
        for modality in cfg.data.task_modalities:
            labeller = build_labeller(modality, cfg.models, world.device, precision)
            target = Target(self.out / modality.data_folder, cfg.data.overwrite)
            self.labellers[modality.name], self.targets[modality.name] = labeller, target
        for task, target in self.targets.items():
            target.claim(self.labellers[task].about)
        self._remove_staging()
        self.tally: Counter[tuple[Task, str]] = Counter()
        self.problems: list[str] = []

    def run(self) -> str:
        """Label all images without labels; return a summary line.

        Raises:
            UserError: Lists the bad files, after all others were labelled.
            OSError: A file cannot be written.
        """
        indices = range(self.world.rank, len(self.folder), self.world.size)
        try:
            if self.cfg.data.link != "none":
                self._link_images(indices)
            self._write_class_names()
            pending = [PendingImage(i, tasks) for i in indices if (tasks := self._missing_tasks(i))]
            self._label(pending)
        finally:
            self._remove_staging()
        if self.problems:
            raise UserError(
                f"{len(self.problems)} problems. Fix them and run the same command again; finished "
                f"work is kept:\n{bullet_list(self.problems)}"
            )
        return self._summary(len(indices))

    def _label(self, pending: list[PendingImage]) -> None:
        shapes = {task: labeller.shapes for task, labeller in self.labellers.items()}
        files = PendingImages(self.folder, pending, shapes)
        batcher = SizeBatcher(self.cfg.runtime.batch_size)
        total = sum(len(p.tasks) for p in pending)
        # Only the main process shows a bar; all have the same number of images.
        hide = None if self.world.is_main else True
        with (
            tqdm(total=total, unit="label", disable=hide, smoothing=0.05) as bar,
            PngWriters(bar.update) as writers,
        ):
            for image in load_images(files, self.cfg.data.num_workers):
                if isinstance(image, str):
                    self.problems.append(image)
                else:
                    for batch in batcher.add(image):
                        self._write(batch, writers)
                if len(self.problems) >= MAX_PROBLEMS:
                    break
            for batch in batcher.flush():
                self._write(batch, writers)

    def _write(self, batch: LabelBatch, writers: PngWriters) -> None:
        sizes = [image.size for image in batch.images]
        made = self.labellers[batch.task].label(batch.inputs, sizes)
        for loaded, image in zip(batch.images, made, strict=True):
            if isinstance(image, str):
                (modality,) = self.folder.modalities
                self.problems.append(f"{self.folder.path(loaded.index, modality)}: {image}")
                continue
            writers.put(self.targets[batch.task], self._path(batch.task, loaded.index), image)
            self.tally[batch.task, WRITTEN] += 1

    def _path(self, task: Task, index: int) -> Path:
        return self.targets[task].root / f"{self.folder.name(index)}.png"

    def _missing_tasks(self, index: int) -> tuple[Task, ...]:
        """Tasks without a label file for an image."""
        missing = []
        for task, target in self.targets.items():
            if target.is_done([self._path(task, index)]):
                self.tally[task, PRESENT] += 1
            else:
                missing.append(task)
        return tuple(missing)

    def _remove_staging(self) -> None:
        """Remove temporary files."""
        photos = self.out / self.cfg.data.source.data_folder
        for root in (self.out, photos, *(target.root for target in self.targets.values())):
            remove_stale_files(root, alone=self.world.size == 1)

    def _link_images(self, indices: range) -> None:
        (modality,) = self.folder.modalities
        root = self.out / self.cfg.data.source.data_folder
        target = Target(root, self.cfg.data.overwrite)
        for index in indices:
            source = Path(str(self.folder.path(index, modality)))
            path = root / f"{self.folder.name(index)}{source.suffix}"
            if target.is_done([path]):
                continue
            data = self._packed(index, modality)
            if data is not None:
                write_file(root, path, data)
            else:
                target.add_file(path, source, self.cfg.data.link)  # type: ignore[arg-type]

    def _packed(self, index: int, modality: Modality) -> bytes | None:
        try:
            return self.folder.packed_original(index, modality)
        except ImageError as err:
            raise UserError(f"{err} Or use --link none.") from err

    def _write_class_names(self) -> None:
        for labeller in self.labellers.values():
            if isinstance(labeller, ClassLabeller) and labeller.class_names:
                Target(self.out).write_class_names(labeller.class_names, [""])

    def _summary(self, images: int) -> str:
        who = f"process {self.world.rank} of {self.world.size}: " if self.world.size > 1 else ""
        parts = []
        for task in self.targets:
            counts = [f"{n} {what}" for (t, what), n in sorted(self.tally.items()) if t == task]
            parts.append(f"{task} {', '.join(counts) or '0'}")
        return f"{who}{images} images; {'; '.join(parts)} -> {self.out}"
