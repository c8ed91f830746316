"""A run of ``multimae predict``: in batches, resumable.

Loader processes decode images and bring them to the model's size, the device computes, threads
encode and write files.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from multimae.images.readers import reuse_pillow_memory
from multimae.inference.predict import forward_of
from multimae.inference.prediction.loading import Item, Loaded, Masks, SampleDataset, collate
from multimae.inference.prediction.outputs import (
    RECORD_FILE,
    ClassOutput,
    HeadOutput,
    LabelOutput,
    Levels,
    NumberOutput,
    Outcome,
    PictureOutput,
    ValueOutput,
    write_json,
)
from multimae.inference.prediction.prediction_options import PredictionOptions
from multimae.inference.prediction.predictor import Predictor, Reconstructor, reconstructed
from multimae.inference.prediction.samples import Samples
from multimae.inference.prediction.truth_files import Truth, open_truth
from multimae.inference.truth import MASK_VALID, first_id_is_void
from multimae.multimae import MultiMAE
from multimae.nn.network import autocast_dtype
from multimae.plotting.colours import Picture
from multimae.specs.errors import RunError, UserError
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality
from multimae.weights.atomic import TEMPORARY_SUFFIX, remove_leftovers

if TYPE_CHECKING:  # tiles are off by default
    from multimae.inference.tiling.tiles import Tiler

METRICS_FILE = "metrics.json"
_FIXED = ("inputs", "format", "overlay", "confidence", "topk", "precision", "visible", "seed")
_TILES = ("tile", "overlap", "tta")
"""Options that all outputs of a folder share."""
_MAX_WRITERS = 8


class _Run:
    """One call of the command."""

    def __init__(self, options: PredictionOptions) -> None:
        self.options = options
        self.device = _device(options.device)
        self.model = _load(options.model).to(self.device)
        self.spec = self.model.spec
        names = [name for name in options.inputs.split("-") if name]
        self.samples = Samples(options.input, self.spec, names, options.only)
        self.heads = {head.name: head for head in self.spec.heads}
        self._check()
        self.truth: Truth | None = None
        if options.truth is not None:
            self.truth = self._open_truth(options.truth)
        self.bad = [*self.samples.bad]
        self.clipped = Counter[str]()  # values that files cannot hold, by head

    def _check(self) -> None:
        """Refuse what the model cannot do."""
        given = {m.name for m in self.samples.modalities}
        for head in self.spec.heads:
            tasks = () if isinstance(head.options, LinearOptions) else head.options.main_tasks
            missing = [name for name in tasks if name not in given]
            if missing:
                raise UserError(
                    f"the head '{head.name}' of {self.spec.name} reads {', '.join(missing)}, but "
                    f"the inputs are {', '.join(sorted(given))}: give a data root with these "
                    "folders, or name what the files hold with --inputs."
                )
        labels = any(h.target.is_labels and not _is_linear(h) for h in self.spec.heads)
        if self.options.confidence and not labels:
            raise UserError(
                "--confidence is for label maps; tables of classes have probabilities, and values "
                "have no confidence."
            )
        self._check_zero_label()
        self._check_tiles()
        if not self.spec.heads and self.options.truth is not None:
            raise UserError("--truth is for fine-tuned models; this one reconstructs its inputs.")

    def _check_zero_label(self) -> None:
        """Refuse another meaning of label 0 than the weights'."""
        flag, known = self.options.seg_reduce_zero_label, map(first_id_is_void, self.spec.heads)
        if flag is not None and any(known is (not flag) for known in known):
            meaning = "a class" if flag else "void, and classes count from 1"
            raise UserError(
                f"--{'' if flag else 'no_'}seg_reduce_zero_label contradicts the weights "
                f"{self.options.model}: label 0 is {meaning}. Drop the flag; it is for weights "
                "that do not say."
            )

    def _check_tiles(self) -> None:
        if self.options.tta and not self.spec.heads:
            raise UserError("--tta is for fine-tuned models; this one reconstructs its inputs.")
        try:
            if self.options.tile is not False:
                self.tiler()
            elif self.options.tta:
                self.predictor()
        except ValueError as err:
            raise UserError(str(err)) from err

    def _open_truth(self, root: Path) -> Truth:
        mask = self.options.use_mask_valid
        if mask is None:
            mask = self.spec.heads[0].uses_mask_valid and (root / MASK_VALID).is_dir()
        zero_is_void = self.options.seg_reduce_zero_label
        truth = open_truth(root, self.spec, self.device, zero_is_void=zero_is_void, mask=mask)
        known = sum(map(truth.has, self.samples.names))
        if not known:
            raise UserError(
                f"--truth {root}: no truth has the name of an image, such as "
                f"{self.samples.names[0]}. Names are paths below the folder, without the "
                "extension."
            )
        self.samples.notes += truth.warnings()
        if known < len(self.samples):
            missing = len(self.samples) - known
            self.samples.notes.append(f"{missing} of {len(self.samples)} images have no truth")
        return truth

    def predictor(self) -> Predictor:
        """The model, ready to predict."""
        options, modalities = self.options, self.samples.modalities
        dtype = autocast_dtype(options.precision, self.device)
        kind = Predictor if self.spec.heads else Reconstructor
        predictor = kind(
            self.model, modalities, self.device, dtype, confidence=options.confidence,
            tta=options.tta,
        )  # fmt: skip
        if isinstance(predictor, Reconstructor):
            predictor.visible, predictor.seed = options.visible, options.seed
        return predictor

    def tiler(self) -> Tiler:
        """The model, ready to predict tiles."""
        from multimae.inference.tiling.tiles import TileOptions, Tiler
        from multimae.inference.tiling.tta import Augmentation

        options = self.options
        size = None if isinstance(options.tile, bool) else options.tile
        tiles = TileOptions(size, options.overlap, Augmentation.parse(options.tta))
        forward = forward_of(self.model, autocast_dtype(options.precision, self.device))
        return Tiler(
            forward, self.spec, self.samples.modalities, tiles, batch_size=options.batch_size
        )

    def outputs(self) -> dict[str, HeadOutput]:
        """Files of every head."""
        options = self.options
        if not self.spec.heads:
            outputs = {m.name: self._reconstructed(m) for m in reconstructed(self.spec)}
            return {**outputs, "reconstruction": PictureOutput(options.out, "reconstruction")}
        outputs = {head.name: self._output(head) for head in self.spec.heads}
        if options.format == "tiff":
            self.samples.georeference(self.samples.names[0])  # fails early without rasterio
            for output in outputs.values():
                output.georeference = self.samples.georeference
        return outputs

    def _output(self, head: HeadSpec) -> HeadOutput:
        options = self.options
        out, overlay = options.out, options.overlay
        if isinstance(head.options, LinearOptions) and head.options.predicts == "number":
            return NumberOutput(out, head.name, options.topk)
        if _is_linear(head):
            return ClassOutput(out, head.name, options.topk, overlay=overlay)
        if not head.target.is_labels:
            return ValueOutput(
                out, head.name, options.format, Levels.of_head(head), head.target.num_channels,
                unit=head.unit, overlay=overlay,
            )  # fmt: skip
        zero_is_void = options.seg_reduce_zero_label
        if zero_is_void is None:
            zero_is_void = first_id_is_void(head)
        if zero_is_void is None and self.truth is not None:
            zero_is_void = self.truth.zero_is_void
        if zero_is_void is None:
            self.samples.notes.append(
                "the weights do not say whether label 0 is void: ids count from 0; if it was in "
                "training, set --seg_reduce_zero_label"
            )
        return LabelOutput(
            out, head.name, head.target, zero_is_void=bool(zero_is_void), overlay=overlay,
            confidence=options.confidence, tiff=options.format == "tiff",
        )  # fmt: skip

    def _reconstructed(self, m: Modality) -> HeadOutput:
        options = self.options
        if m.is_labels:
            return LabelOutput(
                options.out, m.name, m, zero_is_void=False, first_colour=0, overlay=options.overlay
            )
        given = {m.name for m in self.samples.modalities}
        unknown = m.normalization == "robust" and m.data_name not in given
        kind = options.format
        if kind == "png" and (unknown or m.storage == "float"):
            kind = "tiff"
            reason = "in standard deviations, as it is no input" if unknown else "as floats"
            self.samples.notes.append(f"{m.name} is written {reason}: TIFF")
        levels = Levels(1.0, m.max_value)
        return ValueOutput(
            options.out, m.name, kind, levels, m.num_channels, overlay=options.overlay
        )


def run(options: PredictionOptions) -> int:
    """Predict; returns the exit code.

    Raises:
        UserError: Wrong usage: nothing was written.
        RunError: The disk is full or not writable.
    """
    with torch.inference_mode():
        job = _Run(options)
        outputs = job.outputs()
        _claim(options, job.model, job.samples, outputs.values())
        for note in job.samples.notes:
            print(note)
        pending = [
            i
            for i, name in enumerate(job.samples.names)
            if options.overwrite or not all(o.is_complete(name) for o in outputs.values())
        ]
        kept = len(job.samples) - len(pending)
        for problem in job.bad:
            report_bad(*problem)
        try:
            todo = range(len(job.samples)) if job.truth is not None else pending
            if options.tile is False:
                _predict(job, outputs, todo, set(pending))
            else:
                _predict_tiles(job, outputs, todo, set(pending))
            for output in outputs.values():
                output.finish(job.samples.names)
        except OSError as err:
            raise RunError(
                f"{options.out} cannot be written ({err}). The same command continues."
            ) from err
    return _summary(job, len(pending), kept)


def _predict(
    job: _Run, outputs: Mapping[str, HeadOutput], todo: Sequence[int], pending: set[int]
) -> None:
    """Predict the samples ``todo`` and write those that are ``pending``."""
    options, predictor, names = job.options, job.predictor(), job.samples.names
    batch_size = min(options.batch_size, len(job.samples))
    progress = tqdm(total=len(todo), unit=" images", disable=None, smoothing=0.05)
    with progress, _Writers(outputs, max(1, min(_MAX_WRITERS, options.num_workers))) as writers:
        for groups, bad in _batches(job, predictor, todo):
            for item in bad:
                job.bad.append((names[item.index], " ".join(item.problems)))
                report_bad(*job.bad[-1])
                progress.set_postfix(bad=len(job.bad))
                progress.update(item.framed is None)
            for group in groups:
                raw, predictions = predictor.predict(group.framed, batch_size)
                if group.has_truth and job.truth is not None:
                    job.truth.update(raw, group.framed, [names[i] for i in group.indices])
                for index, sample, photo in zip(
                    group.indices, predictions, group.photos, strict=True
                ):
                    if index in pending:
                        writers.submit(names[index], sample, photo)
                progress.update(len(group.indices))
    job.clipped += writers.clipped


def _predict_tiles(
    job: _Run, outputs: Mapping[str, HeadOutput], todo: Sequence[int], pending: set[int]
) -> None:
    """As :func:`_predict`, by tiles."""
    from multimae.inference.prediction.tiled_run import TiledRun

    run = TiledRun(
        job.samples,
        job.tiler(),
        outputs,
        job.truth,
        _masks(job),
        job.device,
        job.options.confidence,
    )
    with tqdm(total=len(todo), unit=" images", disable=None) as progress:
        for index, problem in run.run(todo, pending):
            if problem:
                job.bad.append((job.samples.names[index], problem))
                report_bad(*job.bad[-1])
                progress.set_postfix(bad=len(job.bad))
            progress.update()
    job.clipped += run.clipped


def _batches(
    job: _Run, predictor: Predictor, todo: Sequence[int]
) -> Iterator[tuple[list[Loaded], list[Item]]]:
    options = job.options
    if not todo:
        return
    reuse_pillow_memory()
    dataset = SampleDataset(
        job.samples, todo, predictor, job.truth, overlay=options.overlay, masks=_masks(job)
    )
    workers = min(options.num_workers, -(-len(todo) // options.batch_size))
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=options.batch_size, num_workers=workers, collate_fn=collate,
        pin_memory=False, generator=torch.Generator(),
    )  # fmt: skip
    yield from loader


def _masks(job: _Run) -> Masks | None:
    """Maps of valid pixels for the inputs of a segmentation model."""
    head = job.spec.heads[0] if job.spec.heads else None
    if head is None or not head.target.is_labels or _is_linear(head):
        return None
    if not any(m.plot == "scalar" for m in job.samples.modalities):
        return None
    use = job.options.use_mask_valid
    if use is None:
        found = [job.samples.folder_of(i) for i in range(len(job.samples))]
        roots = {f[0].root for f in found if f}
        use = head.uses_mask_valid and all(f for f in found)
        use = use and all((root / MASK_VALID).is_dir() for root in roots)
    return Masks(job.samples) if use else None


class _Writers:
    """Threads that encode and write files, a bounded number of samples behind."""

    def __init__(self, outputs: Mapping[str, HeadOutput], threads: int) -> None:
        self._outputs, self._limit = outputs, 4 * threads
        self._pool = ThreadPoolExecutor(threads)
        self._running: deque[Future[Counter[str]]] = deque()
        self.clipped = Counter[str]()

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while self._running and kind is None:
                self._finish_oldest()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, name: str, predictions: Mapping[str, Outcome], photo: Picture | None) -> None:
        """Write a sample; waits for the oldest if too many are open."""
        self._running.append(self._pool.submit(self._write, name, predictions, photo))
        while len(self._running) > self._limit:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        self.clipped += self._running.popleft().result()

    def _write(
        self, name: str, predictions: Mapping[str, Outcome], photo: Picture | None
    ) -> Counter[str]:
        """Write a sample; count the values by head that its files cannot hold."""
        clipped = Counter[str]()
        for head, prediction in predictions.items():
            self._outputs[head].write(name, prediction, photo)
            clipped[head] = self._outputs[head].count_clipped(prediction)
        return clipped


def _load(location: str) -> MultiMAE:
    try:
        return MultiMAE.from_pretrained(location)
    except ValueError as err:
        raise UserError(str(err)) from err


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as err:
        raise UserError(f"--device {name}: {str(err).splitlines()[0]}") from err


def _is_linear(head: HeadSpec) -> bool:
    return isinstance(head.options, LinearOptions)


def model_digest(model: MultiMAE) -> str:
    """Digest of the weights and the spec."""
    digest = blake2b(model.spec.to_json().encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return digest.hexdigest()


def _claim(
    options: PredictionOptions, model: MultiMAE, samples: Samples, outputs: Iterable[HeadOutput]
) -> None:
    """Write ``predict.json``, or compare it with that of an earlier run.

    Raises:
        UserError: The folder holds something else, or outputs of another model or other options.
    """
    out, path = options.out.resolve(), options.out / RECORD_FILE
    for root in samples.roots:
        if isinstance(root, Path) and root.is_dir() and (out == root or root in out.parents):
            raise UserError(
                f"--out {options.out} lies in the input {root}: its pictures would be inputs of "
                "the next run. Choose a folder outside."
            )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {options.out} is not a folder.")
    names = (*_FIXED, *(_TILES if options.tile or options.tta else ()))
    # As read back from JSON.
    chosen = json.loads(json.dumps({name: asdict(options)[name] for name in names}))
    chosen["seg_reduce_zero_label"] = any(
        bool(output.first) for output in outputs if isinstance(output, LabelOutput)
    )
    record = {
        "model": options.model,
        "digest": model_digest(model),
        "inputs": sorted({str(root) for root in samples.roots}),
        "options": chosen,
    }
    if path.is_file() and not options.overwrite:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            differing = [k for k in ("digest", "inputs") if old[k] != record[k]]
            keys = dict.fromkeys((*chosen, *old["options"]))
            differing += [k for k in keys if old["options"].get(k) != chosen.get(k)]
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise UserError(f"{path} is damaged ({err!r}): choose another --out.") from err
        if differing:
            words = {"digest": f"another model ({old['model']})", "inputs": "other inputs"}
            listed = ", ".join(words.get(k, f"another --{k}") for k in differing)
            raise UserError(
                f"{options.out} holds outputs of {listed}. Choose another --out, or replace them "
                "with --overwrite."
            )
        for folder in {p.parent for p in out.rglob(f".*{TEMPORARY_SUFFIX}")}:
            remove_leftovers(folder)
        return
    if out.is_dir() and any(out.iterdir()) and not path.is_file():
        raise UserError(
            f"--out {options.out} is not empty and has no {RECORD_FILE}: choose a new folder."
        )
    try:
        write_json(path, record)
    except OSError as err:
        raise UserError(f"--out {options.out} cannot be written ({err}).") from err


def _summary(job: _Run, pending: int, kept: int) -> int:
    unusable = len({name for name, _ in job.bad})
    written = pending - len({name for name, p in job.bad if not p.startswith("not scored")})
    text = f"{written} images predicted into {job.options.out}"
    text += f", {kept} kept from before" if kept else ""
    print(text + (f", {unusable} bad" if unusable else ""))
    for name, clipped in job.clipped.items():
        if clipped:
            print(
                f"warning: {name}: {clipped} values exceed what PNG holds and were clipped: use "
                "--format tiff or npy"
            )
    if job.truth is not None:
        metrics = job.truth.scores.compute()
        for name, value in metrics.items():
            print(f"{name} {value:.6g}")
        write_json(job.options.out / METRICS_FILE, metrics)
    return 1 if job.bad else 0


def report_bad(name: str, problem: str) -> None:
    """Name a bad sample on stderr."""
    text = problem if name in problem else f"{name}: {problem}"
    tqdm.write(f"bad: {text}", file=sys.stderr)
