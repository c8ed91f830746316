"""The ``multimae`` command: configs, predictions, facts about weights, conversion, export.

    multimae init DATA --task semseg
    multimae predict weights/multimae-tiny_rooms-semseg.safetensors photos --out predicted --overlay
    multimae info weights/multimae-tiny_rooms.safetensors
    multimae convert vit.pth multimae.pth --to multimae
    multimae export weights/multimae-tiny_rooms.safetensors encoder.onnx --inputs rgb

PyTorch is imported by the subcommands, so that ``--help`` and ``--version`` return at once.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimae import __version__
from multimae.inference.prediction.prediction_options import DESCRIPTION, add_arguments
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import exit_code_of
from multimae.specs.errors import UserError, print_error
from multimae.specs.survey.init_command import INIT_DESCRIPTION, add_init_arguments, init
from multimae.weights.published import published_lines

if TYPE_CHECKING:
    from multimae.multimae import MultiMAE
    from multimae.specs.modalities import Modality

ONNX_TOLERANCE = 1e-3
"""Largest accepted difference between an ONNX file and the PyTorch model."""

FORMATS = ("vit", "multimae")
FUNCTIONS = ("encoder", "predict", "reconstruct")
POOLS = ("mean", "global", "mean_global")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code: 0; 1 if images are bad, or an ONNX file differs from its model; 2 for bad
        input or flags.
    """
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == "predict":
        return predict(args)
    if args.command == "init":
        return exit_code(lambda: init(args.data, args.task, args.out))
    if args.command == "info":
        if args.published:
            print("\n".join(published_lines()))
            return 0
        if args.weights is None:
            parser.error("info: name weights, or --published")
        return exit_code(lambda: info(args.weights))
    if args.command == "convert":
        return exit_code(
            lambda: convert(
                args.source,
                args.target,
                to=args.to,
                modality=args.modality,
                keep_global_tokens=args.keep_global_tokens,
            )
        )
    if args.target.suffix == ".onnx":
        return exit_code(
            lambda: export_graph(args.weights, args.target, args.what, args.inputs, args.pool)
        )
    if args.target.suffix != ".safetensors":
        parser.error(f"{args.target}: the name must end in .safetensors or .onnx")
    return exit_code(lambda: export_weights(args.weights, args.target, half=not args.float32))


def exit_code(command: Callable[[], int]) -> int:
    """Call ``command``; print an expected error in one line and return 2."""
    try:
        return command()
    except BrokenPipeError:
        raise
    except (UserError, ValueError, OSError, ModuleNotFoundError) as err:
        print_error(UserError(str(err)))
        return 2


def predict(args: argparse.Namespace) -> int:
    """Run a model over images; see :mod:`multimae.inference.prediction.prediction_run`."""
    from multimae.inference.prediction.prediction_options import PredictionOptions
    from multimae.inference.prediction.prediction_run import run

    try:
        return run(PredictionOptions.of(args))
    except UserError as err:
        print_error(err)
        return err.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


def info(weights: str) -> int:
    """Print what a weight file, a model folder or a hub repository holds.

    Raises:
        CheckpointError: Not found, unreadable, or not the weights of a MultiMAE or a ViT.
    """
    from multimae.multimae import MultiMAE
    from multimae.weights.downloads import fetch
    from multimae.weights.files import extract_state_dict, read_checkpoint
    from multimae.weights.load import describe_architecture, is_vit_state_dict

    path = fetch(weights)
    if path.is_file():
        state = extract_state_dict(read_checkpoint(path))
        if is_vit_state_dict(state):
            print(f"{weights}: {describe_architecture(state)}")
            return 0
    print("\n".join(_description(weights, MultiMAE.from_pretrained(weights))))
    return 0


def convert(
    source: str, target: str, *, to: str, modality: str = "rgb", keep_global_tokens: bool = False
) -> int:
    """Convert weights between MultiMAE and ViT names and list the unused keys.

    Args:
        source: Weight file to read.
        target: File to write: ``*.safetensors``, else ``torch.save({"model": ...})``.
        to: ``vit`` or ``multimae``.
        modality: The image input that the ViT's patches belong to.
        keep_global_tokens: See :func:`multimae.weights.convert.multimae_to_vit`.

    Raises:
        ValueError: Unreadable weights, or weights that do not convert.
        OSError: ``target`` cannot be written.
    """
    from multimae.weights.convert import multimae_to_vit, vit_to_multimae
    from multimae.weights.files import extract_state_dict, read_checkpoint, save_state_dict

    state = extract_state_dict(read_checkpoint(source))
    if to == "vit":
        state, unused = multimae_to_vit(
            state, modality=modality, keep_global_tokens=keep_global_tokens
        )
    else:
        state, unused = vit_to_multimae(state, modality=modality)
    save_state_dict(state, target)
    print(f"{target}: {len(state)} tensors converted, {len(unused)} unused")
    for key in unused:
        print(f"  unused: {key}")
    return 0


def export_weights(source: str | Path, target: Path, *, half: bool = True) -> int:
    """Write weights and their description, in half precision unless told otherwise.

    Raises:
        ValueError: Unreadable weights, or weights without a description.
        OSError: ``target`` cannot be written.
    """
    from multimae.weights.model_files import read_model
    from multimae.weights.pretrained import save_model

    spec, state = read_model(source, None, {})
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(state, spec, target, half=half)
    size = target.stat().st_size / 1e6
    print(f"{target}: {spec.name}, {len(state)} tensors, {size:.1f} MB")
    return 0


def export_graph(
    weights: str,
    target: Path,
    what: str | None = None,
    inputs: str | None = None,
    pool: str | None = None,
) -> int:
    """Write an ONNX file and compare it with PyTorch on random inputs.

    Args:
        weights: Weight file, model folder or hub repository.
        target: ``*.onnx``.
        what: See :mod:`multimae.inference.export`.
        inputs: Modalities joined by ``-``; ``None`` for all.
        pool: Pooling of ``encoder``.

    Returns:
        1 if an output differs by more than ``ONNX_TOLERANCE``, else 0.

    Raises:
        ValueError: Unreadable weights, or a model that cannot do ``what``.
        ModuleNotFoundError: The extra ``export`` is not installed.
        OSError: ``target`` cannot be written.
    """
    from multimae.inference.export import export_onnx, onnx_differences, require
    from multimae.multimae import MultiMAE

    require("onnx", "onnxscript", "onnxruntime")
    model = MultiMAE.from_pretrained(weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        names = inputs.split("-") if inputs else None
        export_onnx(model, target, what, inputs=names, pool=pool)  # type: ignore[arg-type]
    differences = onnx_differences(model, target)
    print(f"{target}: {model.spec.name}, {target.stat().st_size / 1e6:.1f} MB")
    print("largest difference from PyTorch")
    for size, outputs in differences.items():
        print(f"  {size}: " + ", ".join(f"{name} {d:.1e}" for name, d in outputs.items()))
    if not all(d <= ONNX_TOLERANCE for outputs in differences.values() for d in outputs.values()):
        print(
            f"error: {target} and PyTorch differ by more than {ONNX_TOLERANCE:.0e}", file=sys.stderr
        )
        return 1
    return 0


def add_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    """``--what``, ``--inputs`` and ``--pool``."""
    group = parser.add_argument_group("ONNX (*.onnx)")
    group.add_argument(
        "--what", choices=FUNCTIONS, help="default: predict if the model has heads, else encoder"
    )
    group.add_argument("--inputs", help="modalities to export, such as rgb-depth; default: all")
    group.add_argument("--pool", choices=POOLS, help="encoder only: one vector per sample")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "Predict with MultiMAE weights; inspect, convert, export.", prog="multimae"
    )
    parser.add_argument("--version", action="version", version=f"multimae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "predict",
        help="run a model over files, folders, data roots or packs",
        description=DESCRIPTION,
    )
    add_arguments(command)

    command = commands.add_parser(
        "init",
        help="look at a data folder and write a config for it",
        description=INIT_DESCRIPTION,
    )
    add_init_arguments(command)

    command = commands.add_parser("info", help="show modalities, size, heads and statistics")
    command.add_argument(
        "weights", nargs="?", help="weight file, its URL, model folder or hub repository"
    )
    command.add_argument(
        "--published", action="store_true", help="list the weights of the authors, with URLs"
    )

    command = commands.add_parser("convert", help="convert between MultiMAE and ViT (timm) names")
    command.add_argument("source", metavar="IN", help="weight file")
    command.add_argument("target", metavar="OUT", help="*.safetensors, or *.pth for torch.save")
    command.add_argument("--to", choices=FORMATS, required=True, help="names to convert to")
    command.add_argument("--modality", default="rgb", help="image input of the ViT")
    command.add_argument(
        "--keep_global_tokens",
        action="store_true",
        help="to vit: keep global_tokens, and a pos_embed of the patches only",
    )

    command = commands.add_parser("export", help="write half-precision weights or an ONNX file")
    command.add_argument("weights", help="weight file; for ONNX also model folder or repository")
    command.add_argument("target", type=Path, metavar="OUT", help="*.safetensors or *.onnx")
    group = command.add_argument_group("weights (*.safetensors)")
    group.add_argument("--float32", action="store_true", help="keep single precision")
    add_onnx_arguments(command)
    return parser


def _description(source: str, model: MultiMAE) -> list[str]:
    spec = model.spec
    sides = str(spec.image_size).strip("()").replace(",", " x")
    encoder = sum(p.numel() for p in model.encoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    lines = [
        f"{source}: {spec.name}",
        f"  parameters   {total / 1e6:.2f} M, {encoder / 1e6:.2f} M of them in the encoder",
        f"  images       {sides} pixels, patches of {spec.patch_size}",
        f"  tokens       {model.global_tokens.shape[-1]} wide, {spec.num_global_tokens} global",
        *(f"  input        {_modality(m)}" for m in spec.inputs),
        *(f"  target       {_modality(m)}" for m in spec.outputs if m not in spec.inputs),
    ]
    if spec.outputs:
        lines.append(f"  decoders     {', '.join(m.name for m in spec.outputs)}")
    for head in spec.heads:
        unit = f" in {head.unit}" if head.unit else ""
        lines.append(f"  head         {head.name}: {head.channels} channels{unit}")
    return lines


def _modality(m: Modality) -> str:
    if m.is_labels:
        return f"{m.name}: labels, {m.num_classes} classes, at 1/{m.stride} resolution"
    text = f"{m.name}: {m.num_channels} channels"
    if m.stride > 1:
        text += f", at 1/{m.stride} resolution"
    if m.normalization == "robust":
        unit = f" after division by {m.robust_unit:g}" if m.robust_unit != 1 else ""
        return f"{text}, standardized per sample{unit}"
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (m.mean, m.std))
    return f"{text}, mean ({mean}), std ({std}) of values / {m.max_value:g}"
