"""Label a folder of images: this process's share, what is there already left alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from tools.common.jobs import MAX_PROBLEMS, PRESENT, WRITTEN
from tools.common.target_folder import Target
from tools.labelling.image_batches import Batcher, LabelBatch, Pending, RgbFiles, Task, read_all
from tools.labelling.labellers import ClassLabeller, Labeller, build_labeller
from tools.labelling.options import LabelConfig, LabelDataOptions, LabelRuntimeOptions
from tools.labelling.png_writers import Writers, sweep
from utils.data.folders import MultiModalFolder
from utils.distributed.world import World
from utils.logs.errors import UserError, bullet_list
from utils.training.stepper import choose_precision


def lone_world(options: LabelRuntimeOptions) -> World:
    """This process among those that torchrun started, which work apart: no group is formed.

    Shares may take hours and end at different times, which a group's time limits would not bear.

    Raises:
        UserError: There is no such device.
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
        UserError: Missing or empty folder, or two images of one name.
    """
    path = Path(data.data_path).resolve()
    return MultiModalFolder(path.parent, [replace(data.source, folder=path.name)])


class Labelling:
    """One process's share of the work."""

    def __init__(self, cfg: LabelConfig, world: World) -> None:
        """List the images and load the models.

        Raises:
            UserError: Bad folders or models, or images of other models in the target.
        """
        self.cfg, self.world, self.out = cfg, world, Path(cfg.data.out)
        self.folder = source_folder(cfg.data)
        precision = choose_precision(cfg.runtime.precision, world.device)
        self.labellers: dict[Task, Labeller] = {}
        self.targets: dict[Task, Target] = {}
        for row in cfg.data.rows:
            labeller = build_labeller(row, cfg.models, world.device, precision)
            target = Target(self.out / row.data_folder, cfg.data.overwrite)
            self.labellers[row.name], self.targets[row.name] = labeller, target
        for task, target in self.targets.items():
            target.claim(self.labellers[task].about)
        self._sweep()
        self.tally: Counter[tuple[Task, str]] = Counter()
        self.problems: list[str] = []

    def run(self) -> str:
        """Label what lacks labels; returns a line of counts.

        Raises:
            UserError: Every bad file found, after all others were labelled.
            OSError: A file cannot be written.
        """
        share = range(self.world.rank, len(self.folder), self.world.size)
        if self.cfg.data.link != "none":
            self._link_images(share)
        self._write_class_names()
        pending = [Pending(i, tasks) for i in share if (tasks := self._lacking(i))]
        try:
            self._label(pending)
        finally:
            self._sweep()
        if self.problems:
            raise UserError(
                f"{len(self.problems)} problems; mend them and run the same command again, which "
                f"keeps what is done:\n{bullet_list(self.problems)}"
            )
        return self._summary(len(share))

    def _label(self, pending: list[Pending]) -> None:
        shapes = {task: labeller.shapes for task, labeller in self.labellers.items()}
        files = RgbFiles(self.folder, pending, shapes)
        batcher = Batcher(self.cfg.runtime.batch_size)
        total = sum(len(p.tasks) for p in pending)
        # Of many processes the first shows the way; their shares are of one size.
        hide = None if self.world.is_main else True
        with (
            tqdm(total=total, unit="label", disable=hide, smoothing=0.05) as bar,
            Writers(bar.update) as writers,
        ):
            for image in read_all(files, self.cfg.data.num_workers):
                if isinstance(image, str):
                    self.problems.append(image)
                else:
                    for batch in batcher.add(image):
                        self._write(batch, writers)
                if len(self.problems) >= MAX_PROBLEMS:
                    break
            for batch in batcher.rest():
                self._write(batch, writers)

    def _write(self, batch: LabelBatch, writers: Writers) -> None:
        sizes = [image.size for image in batch.images]
        made = self.labellers[batch.task].label(batch.inputs, sizes)
        for loaded, image in zip(batch.images, made, strict=True):
            if isinstance(image, str):
                (row,) = self.folder.modalities
                self.problems.append(f"{self.folder.path(loaded.index, row)}: {image}")
                continue
            writers.put(self.targets[batch.task], self._path(batch.task, loaded.index), image)
            self.tally[batch.task, WRITTEN] += 1

    def _path(self, task: Task, index: int) -> Path:
        return self.targets[task].root / f"{self.folder.name(index)}.png"

    def _lacking(self, index: int) -> tuple[Task, ...]:
        """Tasks whose file is not there."""
        lacking = []
        for task, target in self.targets.items():
            if target.has([self._path(task, index)]):
                self.tally[task, PRESENT] += 1
            else:
                lacking.append(task)
        return tuple(lacking)

    def _sweep(self) -> None:
        """Remove temporary files."""
        photos = self.out / self.cfg.data.source.data_folder
        for root in (self.out, photos, *(target.root for target in self.targets.values())):
            sweep(root, alone=self.world.size == 1)

    def _link_images(self, share: range) -> None:
        (row,) = self.folder.modalities
        root = self.out / self.cfg.data.source.data_folder
        target = Target(root, self.cfg.data.overwrite)
        for index in share:
            source = self.folder.path(index, row)
            path = root / f"{self.folder.name(index)}{source.suffix}"
            if not target.has([path]):
                target.place(path, source, self.cfg.data.link)  # type: ignore[arg-type]

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
