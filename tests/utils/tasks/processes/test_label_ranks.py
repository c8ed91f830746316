"""Labels in files, and probes of frozen features, on two processes as on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_finetuning_cls
import run_pretraining_multimae
from tests.support.processes import run_on_two_processes
from tests.support.scenes import ON_CPU, tiny_run, write_scenes

KINDS = {"class": ["loss", "acc1"], "multi": ["loss", "map", "f1_micro", "f1_macro"]}
KINDS["number"] = ["loss", *(f"{m}/{c}" for m in ("mae", "rmse", "r2") for c in ("p", "q"))]


def write_labels(path: Path, root: Path, kind: str) -> Path:
    """Labels of every image of a folder; some cells are empty."""
    rng = np.random.default_rng(3)
    names = [f"{p.parent.name}/{p.stem}" for p in sorted((root / "rgb").rglob("*.jpg"))]
    lines = {"class": ["name,label"], "multi": ["name,x,y,z"], "number": ["name,p,q"]}[kind]
    for i, name in enumerate(names):
        known = [str(v) for v in rng.integers(0, 2, 3)]
        if kind == "class":
            row = [f"class{i % 3}"]
        elif kind == "multi":
            row = ["" if i % 5 == 1 and j < 2 else v for j, v in enumerate(known)]
        else:
            row = [f"{rng.normal(20, 7):.3f}", "" if i % 4 < 2 else f"{rng.normal(-1, 0.1):.3f}"]
        lines.append(",".join([name, *row]))
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row for row in found if row["kind"] == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_label_files_on_two_processes(kind: str, tmp_path: Path) -> None:
    roots = [write_scenes(tmp_path / n, c, s) for n, c, s in (("train", 12, 0), ("val", 7, 50))]
    files = [write_labels(tmp_path / f"{root.name}.csv", root, kind) for root in roots]
    arguments = [
        *("--data_path", str(roots[0]), "--eval_data_path", str(roots[1])),
        *("--label_file", str(files[0]), "--eval_label_file", str(files[1])),
        *("--label_kind", kind, "--nb_classes", "3", "--mixup", "0", "--cutmix", "0"),
        *("--drop_path", "0", "--layer_decay", "1", "--model", "multivit_tiny"),
        *("--input_size", "32", "--patch_size", "8", "--lr", "1e-3", "--warmup_epochs", "0"),
        *("--batch_size", "3", "--epochs", "2", "--log_every", "1", "--num_workers", "0"),
        *(*ON_CPU, "--num_threads", "1", "--num_pictures", "0", "--no_save_ckpt"),
    ]
    run_finetuning_cls.main([*arguments, "--update_freq", "2", "--output_dir", f"{tmp_path}/one"])
    run_on_two_processes("run_finetuning_cls.py", *arguments, "--output_dir", f"{tmp_path}/two")
    one, two = ([row["loss"] for row in rows(tmp_path / name, "train")] for name in ("one", "two"))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)
    alone, ranks = (rows(tmp_path / name, "eval")[-1] for name in ("one", "two"))
    for metric in KINDS[kind]:
        assert ranks[f"eval/{metric}"] == pytest.approx(alone[f"eval/{metric}"], rel=1e-4), metric


def test_probes_on_two_processes(tmp_path: Path) -> None:
    train, unseen = write_scenes(tmp_path / "train", 16), write_scenes(tmp_path / "val", 7, 50)
    labels = write_labels(tmp_path / "labels.csv", unseen, "class")
    probe = ["--probe_freq", "1", "--eval_data_path", str(unseen), "--num_pictures", "0"]
    probe += ["--probe_data_path", str(unseen), "--probe_label_file", str(labels)]
    more = [*probe, "--model", "pretrain_multimae_tiny", "--batch_size", "2", "--no_save_ckpt"]
    options = tiny_run(train, "", *more, "--num_threads", "1")
    one, two = ([*options, "--output_dir", str(tmp_path / name)] for name in ("one", "two"))
    run_pretraining_multimae.main([*one, "--update_freq", "2"])
    run_on_two_processes("run_pretraining_multimae.py", *two)
    alone, ranks = (rows(tmp_path / name, "eval") for name in ("one", "two"))
    assert len(alone) == len(ranks) == 2
    for a, b in zip(alone, ranks, strict=True):
        assert b["eval/knn"] == a["eval/knn"] and 0 < a["eval/rankme"] <= 7
        assert b["eval/rankme"] == pytest.approx(a["eval/rankme"], rel=1e-4)
