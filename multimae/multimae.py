"""MultiMAE and MultiViT (Bachmann et al., ECCV 2022; SPEC section 2).

Shapes: b batch, n visible tokens, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast, overload

import torch
from torch import Tensor

from multimae.nn.masking import (
    gather_tokens,
    masks_from_task_masks,
    no_masks,
    sample_masks,
)
from multimae.nn.network import MultiModalTransformer
from multimae.specs.registry import MULTIVIT, PRETRAIN
from multimae.weights.pretrained import Pretrained

if TYPE_CHECKING:  # training does not load what serves trained models
    from multimae.images.inputs import Images, Inputs
    from multimae.images.pixels import ImageLike
    from multimae.inference.encode import Encoding, Pool
    from multimae.inference.predict import Prediction
    from multimae.inference.reconstruct import Reconstruction, Visible


class MultiMAE(MultiModalTransformer, Pretrained):
    """Masked autoencoder over several aligned modalities."""

    kind = PRETRAIN

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor],
        mask_inputs: bool = True,
        task_masks: Mapping[str, Tensor] | None = None,
        num_encoded_tokens: int = 128,
        alphas: float | Sequence[float] = 1.0,
        sample_tasks_uniformly: bool = False,
        fp32_output_adapters: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor] | Tensor, dict[str, Tensor]]:
        """Encode a random subset of tokens and predict every output.

        Args:
            x: Modality -> batch ((B, C, H, W) floats or (B, H, W) class ids), or one tensor, taken
                as rgb. Keys without an input adapter are ignored.
            mask_inputs: Sample masks; ``False`` encodes everything (masks are all zero).
            task_masks: Modality -> (B, N_m), 1 = masked: given instead of sampled.
            num_encoded_tokens: Visible tokens per sample.
            alphas: Dirichlet concentration, one for all or one per input.
            sample_tasks_uniformly: First draw a subset of the inputs uniformly.
            fp32_output_adapters: Outputs computed in float32 outside autocast.
            generator: Source of the masks' randomness, on the tokens' device.

        Returns:
            Predictions by output name (images (B, C, H/s, W/s) or head outputs), or the encoder
            tokens (B, n+g, d) if there are no output adapters; and the masks by modality.

        Raises:
            ValueError: Sizes that disagree or do not divide, unequal masks, or
                ``num_encoded_tokens`` beyond the number of tokens.
        """
        tokens, layout = self.embed(x)
        if not mask_inputs:
            masks = no_masks(layout, tokens.shape[0], tokens.device)
        elif task_masks is not None:
            masks = masks_from_task_masks(task_masks, layout)
        else:
            masks = sample_masks(
                layout, len(tokens), num_encoded_tokens, alphas, sample_tasks_uniformly,
                generator, tokens.device,
            )  # fmt: skip
        encoded = self.encode_tokens(gather_tokens(tokens, masks.ids_keep))
        if not self.output_adapters:
            return encoded, masks.task_masks
        decoded = self.decode(encoded, layout, masks, fp32_output_adapters)
        return self.fold(decoded, layout), masks.task_masks

    @overload
    def encode(
        self,
        images: Images | ImageLike | Tensor,
        *,
        layers: int | Sequence[int] = 1,
        pool: None = None,
    ) -> Encoding: ...
    @overload
    def encode(
        self, images: Images | ImageLike | Tensor, *, layers: int | Sequence[int] = 1, pool: Pool
    ) -> Tensor: ...
    def encode(
        self,
        images: Images | ImageLike | Tensor,
        *,
        layers: int | Sequence[int] = 1,
        pool: Pool | None = None,
    ) -> Encoding | Tensor:
        """Features of images, with any subset of the inputs, all of it visible.

        Args:
            images: By modality: Pillow images, arrays ``(H, W[, C])`` of stored values, files,
                lists of these for a batch, or tensors in model space. What is no mapping is taken
                for the first input. Images are cut and resized as the description says.
            layers: The last so many blocks, or their numbers from 0.
            pool: ``mean``, ``global`` or ``mean_global``.

        Returns:
            With ``pool`` one float32 vector per image, (B, layers * d); else an
            :class:`multimae.inference.encode.Encoding` with tokens and feature maps. Gradients
            flow, unless you call it under ``torch.no_grad()``.

        Raises:
            ValueError: Images that do not fit their modality, or no such block.
        """
        from multimae.inference.encode import encode

        encoding = encode(self, self._load(images), layers)
        return encoding if pool is None else encoding.pooled(pool)

    def attention(
        self,
        images: Images | ImageLike | Tensor,
        query: tuple[str, int, int],
        *,
        layer: int = -1,
    ) -> dict[str, Tensor]:
        """Where a patch looks, in every modality, averaged over the heads.

        Args:
            images: As for :meth:`encode`.
            query: Modality, row and column of the patch, in patches.
            layer: The block.

        Returns:
            Modality -> (B, rows, columns), on the CPU; see
            :func:`multimae.plotting.attention_grid`.

        Raises:
            ValueError: Bad images, no such patch or block.
        """
        from multimae.inference.encode import attention_maps

        return attention_maps(self, self._load(images), query, layer)

    def reconstruct(
        self,
        images: Images | ImageLike | Tensor,
        visible: Visible = None,
        *,
        alphas: float | Mapping[str, float] = 1.0,
        seed: int = 0,
    ) -> Reconstruction:
        """Show the model some patches and let it predict everything.

        Args:
            images: As for :meth:`encode`; any subset of the inputs.
            visible: Number of patches, shared out over the given modalities at random; or by
                modality ``"all"``, ``"none"``, a number of random patches, or a bool map (rows,
                columns), where modalities that are not named are hidden. Default: a sixth of all.
            alphas: Dirichlet concentration of the shares, one for all or by modality: small ones
                favour one modality, large ones share equally.
            seed: Of the random patches.

        Returns:
            Predictions, truth and pictures.

        Raises:
            ValueError: Bad images, nothing visible, or a model without decoders.
        """
        from multimae.inference.reconstruct import reconstruct

        return reconstruct(self, self.spec, self._load(images), visible, alphas=alphas, seed=seed)

    @overload
    def predict(self, images: Sequence[Mapping[str, ImageLike]]) -> list[dict[str, Prediction]]: ...
    @overload
    def predict(self, images: Mapping[str, ImageLike] | ImageLike) -> dict[str, Prediction]: ...
    def predict(
        self, images: Mapping[str, ImageLike] | ImageLike | Sequence[Mapping[str, ImageLike]]
    ) -> dict[str, Prediction] | list[dict[str, Prediction]]:
        """What a fine-tuned model says about one image, or about each of a list.

        Args:
            images: Modality -> Pillow image, array of stored values or file; or a list of such
                mappings. What is neither is taken for the first input.

        Returns:
            Head -> :class:`~multimae.inference.predict.ClassPrediction` (names, probabilities),
            :class:`~multimae.inference.predict.LabelPrediction` (a class per pixel) or
            :class:`~multimae.inference.predict.ValuePrediction` (values in their unit), for each
            image.

        Raises:
            ValueError: Bad images, or a model without heads.
        """
        if isinstance(images, list | tuple):
            return [self._predict(sample) for sample in images]
        return self._predict(cast("Images", images))

    def _predict(self, images: Images) -> dict[str, Prediction]:
        from multimae.inference.predict import predict

        return predict(self, self.spec, self._load(images))[0]

    def _load(self, images: Images | ImageLike | Tensor) -> Inputs:
        from multimae.images.inputs import Inputs, load_inputs

        if self._spec is None and isinstance(images, Mapping):
            tensors = {name: x for name, x in images.items() if isinstance(x, Tensor)}
            if len(tensors) == len(images):
                return Inputs(self._inputs(tensors), {}, (), ())
        return load_inputs(images, self.spec, self.global_tokens.device)


class MultiViT(MultiMAE):
    """The same network as an ordinary ViT: no masking; for fine-tuning and features."""

    kind = MULTIVIT

    def forward(  # type: ignore[override]
        self, x: Tensor | Mapping[str, Tensor], return_all_layers: bool = False
    ) -> dict[str, Tensor] | Tensor | list[Tensor]:
        """Encode everything.

        Args:
            x: Modality -> batch, or one tensor, taken as rgb.
            return_all_layers: Give heads (or the caller) the tokens after every block.

        Returns:
            With output adapters a dict of their outputs. Without: tokens (B, N+g, d), global
            tokens last, or the list of them after every block.
        """
        if self.output_adapters:
            return self.apply_heads(x, return_all_layers)
        layers = self.encode_layers(self.embed(x)[0])
        return layers if return_all_layers else layers[-1]
