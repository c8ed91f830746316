"""Weights to start from: ``--finetune`` and ``--init_weights``, local files or https URLs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.weights.convert import to_multimae
from multimae.weights.files import (
    CheckpointError,
    StateDict,
    extract_state_dict,
    read_checkpoint,
)
from multimae.weights.load import LoadReport, load_weights
from utils.config.options import StartOptions
from utils.data.dataset import MultiModalDataset

HEADS = "output_adapters."


class StartWeights:
    """A file of weights that is read once: for the spec of its inputs, then into a model."""

    def __init__(self, options: StartOptions, flag: str = "--finetune") -> None:
        """Read nothing yet.

        Args:
            options: Where the weights are.
            flag: Flag that the user set, for errors.
        """
        self.options, self.flag = options, flag

    @cached_property
    def path(self) -> Path:
        """The file, downloaded from a URL."""
        from multimae.weights.downloads import fetch

        return fetch(self.options.finetune, self.flag)

    @cached_property
    def contents(self) -> dict[str, Any]:
        """What is in the file.

        Raises:
            UserError: It is missing or unreadable.
        """
        try:
            return read_checkpoint(self.path)
        except CheckpointError as err:
            raise UserError(f"{self.flag}: {err}") from err

    def state_dict(self, *, heads: bool = False) -> tuple[StateDict, tuple[str, ...]]:
        """Weights under MultiMAE's names, and the keys that were dropped.

        Weights of a ViT (MAE, timm) are converted. ``heads``: keep decoders and heads.

        Raises:
            UserError: The file is missing or unreadable.
        """
        contents, options = self.contents, self.options
        try:
            state = extract_state_dict(contents, options.model_key.split("|"))
            state, unused = to_multimae(_without_prefix(state, options.model_prefix))
        except ValueError as err:
            raise UserError(f"{self.flag}: {err}") from err
        if not heads:
            unused += tuple(k for k in state if k.startswith(HEADS))
            state = {k: v for k, v in state.items() if not k.startswith(HEADS)}
        return state, unused

    def load_for(
        self,
        train_set: MultiModalDataset,
        model: nn.Module,
        info: Callable[[str], None],
        *,
        heads: bool,
        needs_encoder: bool,
    ) -> str:
        """Load into ``model``; log a summary and modalities whose statistics differ.

        Args:
            train_set: Samples to train on.
            model: Changed in place.
            info: Prints a line.
            heads: Also load decoders and heads.
            needs_encoder: The encoder is not trained: the file must have all of it.

        Returns:
            Which keys were loaded, for ``weights.txt``.

        Raises:
            UserError: Weights of the encoder are missing.
        """
        from utils.data.statistics import statistics_warnings

        report, source = self.load(model, heads=heads), self.options.finetune
        absent = [key for key in report.new if not key.startswith(HEADS)]
        if needs_encoder and absent:
            raise UserError(
                f"{source} has no weights for {len(absent)} tensors of the encoder, such as "
                f"{absent[0]}, and --freeze_encoder and --lora_rank do not train them: use inputs "
                "that the weights have, or train all weights."
            )
        for line in (report.summary(), *statistics_warnings(source, train_set)):
            info(line)
        return report.details()

    def load(self, model: nn.Module, *, heads: bool = False) -> LoadReport:
        """Load the weights into ``model`` (SPEC section 6), and free the file's contents.

        Decoders and heads of the checkpoint are ignored, unless ``heads``; keys that the model
        lacks are reported as unused.

        Raises:
            UserError: The file is missing, unreadable or fits nothing.
        """
        state, unused = self.state_dict(heads=heads)
        del self.contents
        try:
            report = load_weights(model, state, source=self.options.finetune, strict=False)
        except ValueError as err:
            raise UserError(f"{self.flag}: {err}") from err
        return replace(report, unused=(*report.unused, *unused))


def _without_prefix(state: StateDict, prefix: str) -> StateDict:
    if not prefix:
        return state
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inside:
        raise CheckpointError(
            f"no key starts with --model_prefix '{prefix}'; the first is '{next(iter(state))}'"
        )
    return inside


def freeze_all_but(model: nn.Module, outputs: Sequence[Modality], names: Sequence[str]) -> None:
    """Freeze everything except adapters, decoders and task embeddings of ``names``."""
    own = {m.name for m in outputs if m.data_name in names}
    parts = tuple(
        [f"input_adapters.{n}." for n in names] + [f"output_adapters.{n}." for n in sorted(own)]
    )
    for key, parameter in model.named_parameters():
        new_embedding = ".task_embeddings." in key and key.rpartition(".")[2] in names
        parameter.requires_grad_(
            parameter.requires_grad and (key.startswith(parts) or new_embedding)
        )
