import json
from pathlib import Path

import pytest
import torch
from torch import nn

from multimae.specs.errors import UserError
from utils.training.finetune_groups import finetune_no_decay, layer_lr_scale
from utils.training.optim import (
    build_optimizer,
    norm_and_bias,
    param_groups,
)

GOLDEN = sorted((Path(__file__).parents[2] / "data" / "parity").glob("layer_decay_*.json"))
GOLDEN_DEPTH = 2


def parameter_like(name: str) -> nn.Parameter:
    """A parameter with the number of dimensions that its name implies."""
    module, _, leaf = name.rpartition(".")
    is_norm = "norm" in module.rpartition(".")[2]
    ndim = 1 if leaf == "bias" or is_norm else 3 if leaf.endswith(("tokens", "_emb")) else 2
    return nn.Parameter(torch.zeros((1,) * ndim))


def settings(groups: list[dict[str, object]]) -> dict[str, tuple[float, float]]:
    return {
        name: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_layer_decay_golden(path: Path) -> None:
    golden = json.loads(path.read_text())
    groups = param_groups(
        [(name, parameter_like(name)) for name in golden],
        0.05,
        lr_scale=lambda name: layer_lr_scale(name, GOLDEN_DEPTH, 0.75),
        no_decay=finetune_no_decay,
    )
    assert settings(groups) == {n: (g["lr_scale"], g["weight_decay"]) for n, g in golden.items()}
    assert len(groups) == len({tuple(g.values()) for g in golden.values()})
    assert len({g["name"] for g in groups}) == len(groups)


def test_golden_files_exist() -> None:
    assert len(GOLDEN) == 3


def test_layer_beyond_the_encoder() -> None:
    with pytest.raises(ValueError, match=r"encoder\.2\.norm1\.weight.* 2 blocks"):
        layer_lr_scale("encoder.2.norm1.weight", depth=2, decay=0.75)


@pytest.mark.parametrize(
    ("name", "shape", "exempt"),
    [
        ("global_tokens", (1, 1, 8), True),
        ("output_adapters.rgb.mask_token", (1, 1, 8), True),
        ("input_adapters.rgb.pos_emb", (1, 8, 2, 2), True),
        ("norm.weight", (8,), True),
        ("odd.bias", (8, 1), True),
        ("input_adapters.semseg.class_emb.weight", (5, 8), False),
        ("output_adapters.rgb.task_embeddings.depth", (1, 1, 8), False),
        ("output_adapters.semseg.cls_emb", (1, 5, 8), False),
        ("encoder.0.attn.qkv.weight", (24, 8), False),
    ],
)
def test_finetune_no_decay(name: str, shape: tuple[int, ...], exempt: bool) -> None:
    assert finetune_no_decay(name, torch.zeros(shape)) is exempt


def test_pretraining_groups() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    net[0].weight.requires_grad_(False)
    everything = param_groups(net.named_parameters(), 0.05)
    assert settings(everything) == dict.fromkeys(["0.bias", "1.weight", "1.bias"], (1.0, 0.05))
    spared = param_groups(net.named_parameters(), 0.05, no_decay=norm_and_bias)
    assert {decay for _, decay in settings(spared).values()} == {0.0}


def test_decoder_decay_reaches_adapters_of_a_wrapped_model_only() -> None:
    names = ["model.encoder.0.w", "model.output_adapters.rgb.w", "model.output_adapters.rgb.b"]
    shapes = [(2, 2), (2, 2), (2,)]
    parameters = [(n, nn.Parameter(torch.zeros(s))) for n, s in zip(names, shapes, strict=True)]
    groups = param_groups(parameters, 0.05, no_decay=norm_and_bias, decoder_decay=0.2)
    assert [decay for _, decay in settings(groups).values()] == [0.05, 0.2, 0.0]
    assert [g["scheduled_decay"] for g in groups] == [True, False, False]


def small_groups() -> list[dict[str, object]]:
    torch.manual_seed(0)
    return param_groups(nn.Linear(4, 3).named_parameters(), 0.05, no_decay=norm_and_bias)


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "AdamW",
        "adam",
        "sgd",
        "momentum",
        "lamb",
        "lion",
        "nadam",
        "rmsprop",
        "adafactor",
        "lookahead_adamw",
    ],
)
def test_optimizers_by_name_step_and_keep_groups(name: str) -> None:
    groups = small_groups()
    optimizer = build_optimizer(groups, name, 1e-2, betas=(0.9, 0.95), eps=1e-8)
    before = [p.clone() for g in groups for p in g["params"]]
    for group in groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    after = [p for g in groups for p in g["params"]]
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0]
    assert [g["lr_scale"] for g in optimizer.param_groups] == [1.0, 1.0]


def test_fused_adamw_equals_unfused() -> None:
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    fused_groups, plain_groups = small_groups(), small_groups()
    fused = build_optimizer(fused_groups, "adamw", **options)
    plain = torch.optim.AdamW(plain_groups, foreach=False, **options)
    assert fused.defaults["fused"] is True
    for _ in range(5):
        for group in (*fused_groups, *plain_groups):
            for p in group["params"]:
                p.grad = p.detach().sin()
        fused.step()
        plain.step()
    for a, b in zip(fused_groups, plain_groups, strict=True):
        torch.testing.assert_close(a["params"], b["params"])


def test_adamw_equals_timms() -> None:
    from timm.optim import create_optimizer_v2

    groups = [{"params": [nn.Parameter(torch.ones(3))]}]
    ours = build_optimizer(groups, "AdamW", 1e-2)
    theirs = create_optimizer_v2(groups, opt="adamw", lr=1e-2, fused=True)
    assert type(ours) is type(theirs) and ours.defaults == theirs.defaults


@pytest.mark.parametrize(
    ("name", "betas", "message"),
    [
        ("adamv", None, r"unknown optimiser 'adamv'; did you mean adam"),
        ("nonsense", None, r"unknown optimiser 'nonsense' Known: adabelief"),
        ("adan", (0.9, 0.95), r"--opt_betas: adan takes 3 values, got 2"),
        ("adahessian", None, r"second derivatives"),
        ("adamw", (0.9, 1.5), r"cannot be built: .*1\.5"),
    ],
)
def test_bad_options(name: str, betas: tuple[float, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(small_groups(), name, 1e-3, betas=betas)


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer([], "adamw", 1e-3)


def test_state_dict_round_trip_keeps_our_keys() -> None:
    optimizer = build_optimizer(small_groups(), "adamw", 1e-3)
    saved = optimizer.state_dict()
    other = build_optimizer(small_groups(), "adamw", 5e-3)
    other.load_state_dict(saved)
    for a, b in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {
            k: v for k, v in b.items() if k != "params"
        }
        assert b["lr"] == 1e-3 and b["param_names"] and "scheduled_decay" in b
