"""Golden tensors of the published implementation: encoder, decoders, losses, position tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from multimae.criterion import (
    MaskedCrossEntropyLoss,
    MaskedL1Loss,
    MaskedMSELoss,
    NoWeightingStrategy,
    UncertaintyWeightingStrategy,
    build_loss,
    masked_berhu_loss,
    masked_l1_loss,
    masked_mse_loss,
)
from multimae.multimae import MultiMAE, MultiViT
from multimae.nn.tokens import sincos_2d
from multimae.specs.modalities import ModalityTable, default_table, make_table, select
from multimae.specs.registry import DecoderOptions, input_adapter, spatial_output_adapter
from multimae.specs.spec import ModelSpec
from tests.support.golden import DATA, assert_close, golden

PRETRAIN = [
    "pretrain_square",
    "pretrain_interp_nonsquare",
    "pretrain_missing_input",
    "pretrain_no_task_queries",
    "pretrain_no_xattn_depth1",
]


def table_of(config: dict[str, Any]) -> ModalityTable:
    row = {"num_classes": config["num_classes"], "dim_class_emb": config["dim_class_emb"]}
    return make_table({"semseg": row})


def encoder_args(config: dict[str, Any]) -> dict[str, int]:
    return {k: config[k] for k in ("dim_tokens", "depth", "num_heads", "num_global_tokens")}


def pretrain_model(config: dict[str, Any]) -> tuple[MultiMAE, ModalityTable]:
    table, patch, size = table_of(config), config["patch_size"], config["adapter_image_size"]
    dec = dict(config["decoder"])
    options = DecoderOptions(dim=dec.pop("dim_tokens"), **dec)
    model = MultiMAE(
        {m.name: input_adapter(m, patch, size) for m in select(table, config["in_domains"])},
        {
            m.name: spatial_output_adapter(m, config["in_domains"], patch, size, options)
            for m in select(table, config["out_domains"])
        },
        **encoder_args(config),
    )
    return model, table


@pytest.mark.parametrize("case", PRETRAIN)
def test_pretraining_outputs_losses_and_gradients(case: str) -> None:
    g = golden(case)
    model, table = pretrain_model(g.config)
    model.load_state_dict(g["weight"], strict=True)
    task_masks = {k[5:]: v for k, v in g["mask"].items() if k.startswith("task.")}
    preds, masks = model(g["input"], task_masks=task_masks)
    assert set(preds) == set(g["pred"])
    total = torch.zeros(())
    for name, pred in preds.items():
        assert_close(pred, g["pred"][name])
        row = table[name]
        loss = build_loss(row, g.config["patch_size"])
        target = g["input"][row.data_name]
        masked = loss(pred, target, masks.get(row.data_name))
        assert_close(masked.detach(), g["loss"][name])
        assert_close(loss(pred, target).detach(), g["loss_unmasked"][name])
        total = total + masked
    total.backward()
    params = dict(model.named_parameters())
    for name, norm in g["grad_norm"].items():
        grad = params[name].grad
        assert grad is not None, name
        assert abs(grad.norm() - norm) <= 1e-4 * norm + 1e-7, (name, grad.norm(), norm)


@pytest.mark.parametrize("case", PRETRAIN)
def test_given_masks_reproduce_the_drawn_ids(case: str) -> None:
    """The same visible set as the golden draw, and ids_restore agrees with the task masks."""
    g = golden(case)
    model, _ = pretrain_model(g.config)
    _, layout = model.embed(g["input"])
    keep = g["mask"]["ids_keep"]
    visible = torch.zeros(len(keep), layout.num_task_tokens).scatter_(1, keep, 1.0)
    for name, part in layout.slices.items():
        expected = g["mask"][f"task.{name}"]
        assert torch.equal(1 - visible[:, part.start : part.stop].long(), expected)


@pytest.mark.parametrize(
    "case", ["multivit_tokens", "multivit_all_layers", "multivit_padded_semseg"]
)
def test_multivit_features(case: str) -> None:
    g = golden(case)
    config = g.config
    table = table_of(config)
    adapters = {}
    for m in select(table, config["in_domains"]):
        padding = config["emb_padding_idx"] if m.is_labels else None
        adapters[m.name] = input_adapter(
            m, config["patch_size"], config["adapter_image_size"], emb_padding_idx=padding
        )
    model = MultiViT(adapters, None, **encoder_args(config)).eval()
    model.load_state_dict(g["weight"], strict=True)
    out = model(g["input"], return_all_layers=config["return_all_layers"])
    if config["return_all_layers"]:
        for i, layer in enumerate(out):
            assert_close(layer.detach(), g["output"][f"layer{i}"])
    else:
        assert_close(out.detach(), g["output"]["tokens"])


def test_input_order_is_the_adapters_order() -> None:
    g = golden("multivit_tokens")
    config = g.config
    adapters = {
        m.name: input_adapter(m, config["patch_size"], config["adapter_image_size"])
        for m in select(table_of(config), config["in_domains"])
    }
    model = MultiViT(adapters, None, **encoder_args(config)).eval()
    model.load_state_dict(g["weight"])
    shuffled = {name: g["input"][name] for name in ("semseg", "rgb", "depth")}
    assert torch.equal(model(shuffled | {"thermal": torch.zeros(1)}), model(g["input"]))


def test_masked_losses() -> None:
    g = golden("masked_losses")
    x, out = g["input"], g["output"]
    losses = {
        "mse": (MaskedMSELoss(16), x["pred"], x["target"]),
        "mse_norm": (MaskedMSELoss(16, norm_pix=True), x["pred"], x["target"]),
        "l1": (MaskedL1Loss(16), x["pred"], x["target"]),
        "l1_norm": (MaskedL1Loss(16, norm_pix=True), x["pred"], x["target"]),
        "ce0.0": (MaskedCrossEntropyLoss(16, 4), x["sem_logits"], x["sem_target"]),
        "ce0.1": (MaskedCrossEntropyLoss(16, 4, 0.1), x["sem_logits"], x["sem_target"]),
    }
    covered = set()
    for name, (loss, pred, target) in losses.items():
        zero = torch.zeros_like(x["mask"])
        for suffix, mask in (("", x["mask"]), (".nomask", None), (".zero", zero)):
            assert_close(loss(pred, target, mask), out[name + suffix])
            covered.add(name + suffix)
    assert covered == set(out)


def test_depth_losses() -> None:
    g = golden("depth_losses_metrics")
    pred, target, mask = (g["input"][k] for k in ("pred", "target", "mask_valid"))
    for name, loss in {
        "depth.masked_berhu_loss": masked_berhu_loss,
        "depth.masked_l1_loss": masked_l1_loss,
        "taskonomy.masked_l1_loss": masked_l1_loss,
        "taskonomy.masked_mse_loss": masked_mse_loss,
    }.items():
        assert_close(loss(pred, target, mask), g["output"][name])


def test_uncertainty_balancer() -> None:
    g = golden("uncertainty_balancer")
    balancer = UncertaintyWeightingStrategy(g.config["tasks"])
    balancer.load_state_dict(g["weight"], strict=True)
    for name, value in balancer(g["input"]).items():
        assert_close(value.detach(), g["output"][name])
    assert NoWeightingStrategy()(g["input"]) == g["input"]


def test_sincos_tables() -> None:
    for key, expected in golden("sincos_posemb")["output"].items():
        height, width, dim = map(int, key.split("x"))
        assert_close(sincos_2d(height, width, dim), expected, tol=1e-6)


def test_sincos_of_a_non_square_size_is_a_crop_of_the_square_one() -> None:
    square = sincos_2d(6, 6, 16)
    assert torch.equal(sincos_2d(4, 6, 16), square[:, :, :4])
    assert torch.equal(sincos_2d(6, 3, 16), square[:, :, :, :3])


def test_published_base_has_exactly_the_contract_state_dict() -> None:
    """As the published pre-training config builds it: the names and shapes users' files have."""
    contract = json.loads((DATA / "contract" / "multimae_b_state_dict.json").read_text())
    table = default_table()
    inputs = select(table, ["rgb", "depth", "semseg"])
    outputs = (*inputs, table["norm_rgb"])
    with torch.device("meta"):
        model = MultiMAE.from_spec(ModelSpec("pretrain_multimae_base", tuple(inputs), outputs))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert len(contract) == 351
    assert shapes == contract


def test_table_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        default_table()["rgb"].stride = 2  # type: ignore[misc]
