r"""Evaluate frozen features with k nearest neighbours and a linear probe on class folders.

    python tools/probe.py --weights output/demo/model.safetensors --in_domains rgb-depth \
        --data_path data/rooms/train --eval_data_path data/rooms/val --input_size 128

The encoder is frozen. Each image is resized, centre-cropped and encoded once, from the modalities
of ``--in_domains``; its feature vector is pooled from the tokens. The last line of output is JSON.
``--help`` lists all options; see FINETUNING.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from multimae.inference.neighbours import Labelled, knn_accuracy
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from multimae.specs.modalities import select
from tools.probing.classifiers import (
    TOLERANCE,
    LinearResult,
    linear_probe,
    majority_accuracy,
)
from tools.probing.frozen_features import (
    extract,
    feature_loader,
    labelled_folder,
    load_frozen,
)
from tools.probing.probe_options import ProbeConfig
from utils.checkpoint.start_weights import StartWeights
from utils.checkpoint.trained_inputs import trained_spec, with_trained_inputs
from utils.config.options import RuntimeOptions
from utils.config.parse import parse_config
from utils.data.sets.class_folders import check_classes, find_classes
from utils.distributed.world import init_world
from utils.training.seeding import seed_everything
from utils.training.stepper import choose_precision


def main(argv: Sequence[str] | None = None) -> None:
    """Extract features, evaluate both classifiers, print and write the results."""
    cfg = parse_config(ProbeConfig, argv)
    target = _output_file(cfg.runtime.output_json)
    world = init_world(
        RuntimeOptions(device=cfg.runtime.device, num_threads=cfg.runtime.num_threads)
    )
    if world.size > 1:
        raise UserError("probe.py runs in one process: start it with python, not torchrun")
    info, train, test, num_classes = _features(cfg, world.device)
    # L-BFGS converges better in float64, which GPUs are slow at.
    on_gpu = world.device.type == "cuda"
    device = world.device if on_gpu else torch.device("cpu")
    dtype = torch.float32 if on_gpu else torch.float64
    train, test = train.to(device, dtype), test.to(device, dtype)
    options = cfg.classifiers
    knn = knn_accuracy(train, test, num_classes, options.knn_k, options.knn_temperature)
    linear = linear_probe(
        train,
        test,
        num_classes,
        options.linear_l2,
        held_out=options.held_out,
        max_iterations=options.linear_iterations,
        seed=cfg.runtime.seed,
    )
    chance = majority_accuracy(train.y, test.y, num_classes)
    print(_table(chance, knn, linear))
    result = {**info, "chance": chance, "knn": knn, "linear": _linear_entry(linear)}
    line = json.dumps(result)
    if target is not None:
        target.write_text(line + "\n", encoding="utf-8")
    print(line)


def _features(
    cfg: ProbeConfig, device: torch.device
) -> tuple[dict[str, Any], Labelled, Labelled, int]:
    """Extract features.

    Returns:
        Entries for the report, training features, test features, number of classes.
    """
    start = StartWeights(cfg.model.start, "--weights") if cfg.model.weights else None
    cfg = _as_trained(cfg, start)
    inputs = select(cfg.data.table(), cfg.data.in_names)
    folder, eval_folder = (
        labelled_folder(path, inputs) for path in (cfg.data.data_path, cfg.data.eval_data_path)
    )
    classes = find_classes(folder)
    if len(classes) < 2:
        raise UserError(f"{folder.root} has one class, '{classes.names[0]}': at least two needed")
    check_classes(eval_folder, classes)
    seed_everything(cfg.runtime.seed)
    frozen = load_frozen(cfg.model, inputs, start)
    if frozen.report is not None:
        print(frozen.report.summary())
    model = frozen.model.to(device)
    precision = choose_precision(cfg.runtime.precision, device)
    batch = cfg.data.batch_size
    loaders = {
        "train": feature_loader(folder, cfg.model, cfg.data, batch_size=batch),
        "eval": feature_loader(
            eval_folder,
            cfg.model,
            cfg.data,
            batch_size=cfg.data.eval_batch_size or batch,
            limit=cfg.data.max_val_images,
        ),
    }
    train, test = (
        extract(model, loader, inputs, classes, cfg.features, precision, title=title)
        for title, loader in loaders.items()
    )
    info = {
        "weights": cfg.model.weights or "random",
        "model": frozen.name,
        "in_domains": cfg.data.in_domains,
        "input_size": cfg.model.input_size,
        "pool": cfg.features.pool,
        "layers": cfg.features.layers,
        "token_norm": cfg.features.token_norm,
        "dim": train.x.shape[1],
        "classes": len(classes),
        "train_images": len(train),
        "eval_images": len(test),
        "seed": cfg.runtime.seed,
    }
    print(
        f"{frozen.name} from {cfg.data.in_domains}, {info['dim']} features, {len(classes)} "
        f"classes, {len(train)} training images, {len(test)} test images ({precision}, "
        f"{device})"
    )
    return info, train, test, len(classes)


def _as_trained(cfg: ProbeConfig, start: StartWeights | None) -> ProbeConfig:
    """Configuration with the input preprocessing of the weights."""
    cfg, notes = with_trained_inputs(cfg, trained_spec(None, start)[1], cfg.model.weights)
    for note in notes:
        print(note)
    return cfg


def _linear_entry(linear: LinearResult) -> dict[str, Any]:
    return {
        **linear.scores,
        "l2": linear.l2,
        "train_acc1": linear.train["acc1"],
        "held_out_acc1": {l2: scores["acc1"] for l2, scores in linear.held_out.items()},
        "gradient": linear.gradient,
    }


def _table(chance: float, knn: Mapping[int, Mapping[str, float]], linear: LinearResult) -> str:
    """Format accuracies in percent, with warnings."""
    columns = list(linear.scores)
    rows: dict[str, Mapping[str, float]] = {
        "majority class": {"acc1": chance},
        **{f"kNN, k = {k}": scores for k, scores in knn.items()},
        f"linear, l2 = {linear.l2:g}": linear.scores,
    }
    lines = [f"\n{'accuracy in %':<20}" + "".join(f"{name:>8}" for name in columns)]
    for name, scores in rows.items():
        cells = (f"{scores[c]:8.2f}" if c in scores else f"{'':>8}" for c in columns)
        lines.append(f"{name:<20}" + "".join(cells).rstrip())
    tried = sorted(linear.held_out)
    if len(tried) > 1 and linear.l2 in (tried[0], tried[-1]):
        lines.append("note: the best l2 is at the edge of the grid; widen --linear_l2")
    if linear.gradient > 1000 * TOLERANCE:
        lines.append(
            f"note: the linear probe did not converge (gradient {linear.gradient:.1e}); "
            "raise --linear_iterations or --linear_l2"
        )
    return "\n".join(lines) + "\n"


def _output_file(path: str) -> Path | None:
    """Result file; checked for write access before the features are computed."""
    if not path:
        return None
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.open("a", encoding="utf-8").close()
    except OSError as err:
        raise UserError(f"--output_json {path}: cannot be written ({err.strerror or err})") from err
    return target


if __name__ == "__main__":
    run_command(main)
