"""MultiMAE and MultiViT (Bachmann et al., ECCV 2022; SPEC section 2).

Shapes: b batch, n visible tokens, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast, overload

import torch
from torch import Tensor

from multimae.nn.masking import gather_tokens, masks_from_task_masks, no_masks, sample_masks
from multimae.nn.network import MultiModalTransformer
from multimae.specs.registry import MULTIVIT, PRETRAIN
from multimae.weights.pretrained import Pretrained

if TYPE_CHECKING:  # training does not import inference modules
    from multimae.images.inputs import Images, Inputs
    from multimae.images.pixels import ImageLike
    from multimae.inference.encode import Encoding, Pool
    from multimae.inference.predict import Prediction
    from multimae.inference.reconstruct import Reconstruction, Visible
    from multimae.nn.tokens import Size


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
            x: Modality -> batch ((B, C, H, W) floats or (B, H, W) class ids), or a single RGB
                tensor. Keys without an input adapter are ignored.
            mask_inputs: Mask tokens; ``False`` encodes all tokens and returns all-zero masks.
            task_masks: Modality -> (B, N_m), 1 = masked; replaces sampled masks.
            num_encoded_tokens: Number of visible tokens per sample.
            alphas: Dirichlet concentration, one for all or one per input.
            sample_tasks_uniformly: First draw a subset of the inputs uniformly.
            fp32_output_adapters: Outputs to compute in float32, outside autocast.
            generator: Random generator of the masks, on the tokens' device.

        Returns:
            Predictions by output name (images (B, C, H/s, W/s) or head outputs), or the encoder
            tokens (B, n+g, d) without output adapters; and the masks by modality.

        Raises:
            ValueError: Full-resolution sizes differ or are not divisible by the patch size, samples
                have different numbers of visible tokens, or ``num_encoded_tokens`` is too large.
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
        """Compute features of images from any subset of the inputs, without masking.

        Args:
            images: Modality -> Pillow image, array ``(H, W[, C])`` of stored values, file, list of
                these for a batch, or tensor in model space; or a single image of the first input.
                Images are resized with the spec's resize mode.
            layers: Last n blocks, or block indices.
            pool: ``mean``, ``global`` or ``mean_global``.

        Returns:
            With ``pool``, one float32 vector per image, (B, layers * d); else an
            :class:`multimae.inference.encode.Encoding` with tokens and feature maps. Gradients are
            recorded, except under ``torch.no_grad()``.

        Raises:
            ValueError: An image does not match its modality, or a block index is out of range.
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
        """Attention of a patch to all patches of all modalities, averaged over heads.

        Args:
            images: As for :meth:`encode`.
            query: Modality, row and column of the patch, in patches.
            layer: Block index.

        Returns:
            Modality -> (B, rows, columns), on the CPU; see
            :func:`multimae.plotting.attention_grid`.

        Raises:
            ValueError: Invalid images, or patch or block out of range.
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
        """Predict all outputs from some visible patches.

        Args:
            images: As for :meth:`encode`; any subset of the inputs.
            visible: Total number of visible patches, distributed over the modalities at random; or
                modality -> ``"all"``, ``"none"``, a number of random patches, or a bool map (rows,
                columns), where other modalities are fully masked. Default: a sixth of all patches.
            alphas: Dirichlet concentration, one for all or by modality: small values favour one
                modality, large values distribute patches evenly.
            seed: Seed of the random patches.

        Returns:
            Predictions, ground truth and pictures.

        Raises:
            ValueError: Invalid images, no visible patch, or a model without decoders.
        """
        from multimae.inference.reconstruct import reconstruct

        return reconstruct(self, self.spec, self._load(images), visible, alphas=alphas, seed=seed)

    @overload
    def predict(
        self,
        images: Sequence[Mapping[str, ImageLike]],
        *,
        tile: bool | int | Size = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> list[dict[str, Prediction]]: ...
    @overload
    def predict(
        self,
        images: Mapping[str, ImageLike] | ImageLike,
        *,
        tile: bool | int | Size = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> dict[str, Prediction]: ...
    def predict(
        self,
        images: Mapping[str, ImageLike] | ImageLike | Sequence[Mapping[str, ImageLike]],
        *,
        tile: bool | int | Size = False,
        overlap: float = 0.25,
        tta: str = "",
    ) -> dict[str, Prediction] | list[dict[str, Prediction]]:
        """Run the heads of a fine-tuned model on an image, or on each of a list.

        Args:
            images: Modality -> Pillow image, array of stored values or file; a list of such
                mappings; or a single image of the first input.
            tile: Predict dense heads by tiles at the image's resolution, of any size: ``(h, w)``,
                a side, or ``True`` for the model's input size. See
                :mod:`multimae.inference.tiling.tiles`.
            overlap: Least share of a tile that the next one covers, too.
            tta: Average over ``flip``, ``scales`` (0.75, 1, 1.25) or given ones, joined by commas.

        Returns:
            Head -> :class:`~multimae.inference.predict.ClassPrediction` (names, probabilities),
            :class:`~multimae.inference.predict.LabelPrediction` (class of every pixel) or
            :class:`~multimae.inference.predict.ValuePrediction` (values in their unit), for each
            image.

        Raises:
            ValueError: Invalid images or options, or a model without heads.
        """
        if isinstance(images, list | tuple):
            return [self._predict(sample, tile, overlap, tta) for sample in images]
        return self._predict(cast("Images", images), tile, overlap, tta)

    def _predict(
        self, images: Images, tile: bool | int | Size, overlap: float, tta: str
    ) -> dict[str, Prediction]:
        if tile is False and not tta:
            from multimae.inference.predict import predict

            return predict(self, self.spec, self._load(images))[0]
        from multimae.inference.tiling.tiles import TileOptions, predict_augmented, predict_tiles
        from multimae.inference.tiling.tta import Augmentation

        augmentation = Augmentation.parse(tta)
        if tile is False:
            return predict_augmented(self, self.spec, self._load(images), augmentation)
        size = None if tile is True else (tile, tile) if isinstance(tile, int) else tile
        options = TileOptions(size, overlap, augmentation)
        return predict_tiles(self, self.spec, images, options)

    def _load(self, images: Images | ImageLike | Tensor) -> Inputs:
        from multimae.images.inputs import Inputs, load_inputs

        if self._spec is None and isinstance(images, Mapping):
            tensors = {name: x for name, x in images.items() if isinstance(x, Tensor)}
            if len(tensors) == len(images):
                return Inputs(self._inputs(tensors), {}, (), ())
        return load_inputs(images, self.spec, self.global_tokens.device)


class MultiViT(MultiMAE):
    """MultiMAE encoder without masking, for fine-tuning and feature extraction."""

    kind = MULTIVIT

    def forward(  # type: ignore[override]
        self, x: Tensor | Mapping[str, Tensor], return_all_layers: bool = False
    ) -> dict[str, Tensor] | Tensor | list[Tensor]:
        """Encode all tokens and apply the heads, if there are any.

        Args:
            x: Modality -> batch, or a single RGB tensor.
            return_all_layers: Pass the tokens of all blocks to the heads, or return them.

        Returns:
            With heads, a dict of their outputs. Without, tokens (B, N+g, d), global tokens last; or
            the list of them for all blocks.
        """
        if self.output_adapters:
            return self.apply_heads(x, return_all_layers)
        layers = self.encode_layers(self.embed(x)[0])
        return layers if return_all_layers else layers[-1]
