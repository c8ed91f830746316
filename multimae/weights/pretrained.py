"""``from_pretrained``, ``save_pretrained``, ``push_to_hub``: models saved with their spec.

A model folder holds ``model.safetensors``, ``config.json`` (a
:class:`multimae.specs.spec.ModelSpec`) and ``README.md``. The safetensors header repeats the spec:
the file alone is enough to load the model (:mod:`multimae.weights.model_files`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from multimae.specs.spec import ModelSpec
from multimae.weights.write import save_state_dict

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KEY = "multimae"
"""Metadata key of the spec in a safetensors file."""
SPEC = "spec"
"""Key of the spec in a ``torch.save`` dict."""

_HEADS = "output_adapters."
_CARD = """---
{{ card_data }}
---

# {{ model_name | default("MultiMAE", true) }}

A multi-modal masked autoencoder ([paper](https://arxiv.org/abs/2204.01678)), saved by the
`multimae` library. `config.json` lists inputs and outputs.

```python
from multimae import MultiMAE

model = MultiMAE.from_pretrained("this repository's id, or its folder")
features = model.encode({"rgb": "photo.jpg"}, pool="mean")
```
"""


class Pretrained(
    ModelHubMixin,
    library_name="multimae",
    tags=["multimae", "masked-autoencoder"],
    paper_url="https://arxiv.org/abs/2204.01678",
    model_card_template=_CARD,
):
    """Mixin that loads and saves models with their spec."""

    kind: ClassVar[str]
    _spec: ModelSpec | None = None

    @property
    def spec(self) -> ModelSpec:
        """Spec of the model.

        Raises:
            ValueError: The model was built from adapters and has no spec.
        """
        if self._spec is None:
            raise ValueError(
                "this model was built from adapters and knows no modalities: build it with "
                "from_spec or from_pretrained, or set its spec with model.describe(ModelSpec(...))"
            )
        return self._spec

    def describe(self, spec: ModelSpec) -> Self:
        """Set the spec of a model built from adapters; returns the model."""
        self._spec = spec
        return self

    @classmethod
    def from_spec(cls, spec: ModelSpec, **options: Any) -> Self:
        """Build a model with initial weights.

        Args:
            spec: Spec of the model. Specs of fine-tuned models give a ``MultiViT`` from either
                class; ``MultiViT`` builds only the encoder of a pre-training spec.
            **options: Further arguments of the constructor, such as ``drop_path_rate``.

        Raises:
            ValueError: Unknown name, or contradictory shapes.
        """
        classes = {c.kind: c for c in (*reversed(cls.__subclasses__()), cls)}
        if spec.kind not in classes:
            spec = spec.encoder()
        model = cast(Any, classes[spec.kind])(**spec.keywords(), **options)
        return cast("Self", model.describe(spec))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, location: str | os.PathLike[str], *, spec: ModelSpec | None = None, **hub: Any
    ) -> Self:
        """Load a model in float32, on the CPU, in evaluation mode.

        Args:
            location: A weight file, its https URL, a model folder, or a repository id on the
                Hugging Face hub. The spec of a file without one (published checkpoints) is inferred
                from its weights.
            spec: Spec to use instead of the stored or inferred one.
            **hub: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only``.

        Raises:
            CheckpointError: Not found, unreadable, or the weights do not match the spec.
        """
        from multimae.weights.load import load_weights  # training from scratch reads no weights
        from multimae.weights.model_files import read_model

        spec, state = read_model(location, spec, hub)
        model = cls.from_spec(spec)
        if not cast(nn.Module, model).output_adapters:
            state = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
        load_weights(cast(nn.Module, model), state, source=str(location), strict=True)
        return cast("Self", cast(nn.Module, model).eval())

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and spec; the hub mixin adds the model card."""
        state = cast(nn.Module, self).state_dict()
        save_model(state, self.spec, save_directory / WEIGHTS)
        (save_directory / CONFIG).write_text(self.spec.to_json(indent=2) + "\n", encoding="utf-8")


def save_model(
    state: Mapping[str, Tensor],
    spec: ModelSpec,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
) -> None:
    """Write weights with their spec.

    Args:
        state: The model's state dict.
        spec: Spec of the model.
        path: ``*.safetensors``.
        half: Store float16 instead of float32.
    """
    tensors = {
        key: value.half() if half and value.is_floating_point() else value
        for key, value in state.items()
    }
    save_state_dict(tensors, path, metadata={KEY: spec.to_json()})


def spec_entry(model: nn.Module) -> dict[str, str]:
    """Checkpoint entry with the spec of ``model``; empty if it has none."""
    spec = model._spec if isinstance(model, Pretrained) else None
    return {} if spec is None else {SPEC: spec.to_json()}
