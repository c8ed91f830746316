"""One torch thread per test process, the model size ``nano``, and slow tests."""

from __future__ import annotations

import pytest
import torch

from multimae.specs.registry import SIZES

torch.set_num_threads(1)
SIZES["nano"] = {"dim_tokens": 64, "depth": 2, "num_heads": 4}

# Modules whose tests start training processes or browsers, compile, or export. They run first,
# to balance the load of parallel workers; `make test-fast` skips them.
SLOW = {
    *("test_global_batch", "test_trained_inputs", "test_security_weights", "test_resuming"),
    *("test_lock", "test_bad_input", "test_prepare_taskonomy", "test_published_files"),
    *("test_torture", "test_fsdp", "test_export", "test_finetuning_ranks", "test_pretraining"),
    *("test_app", "test_photos", "test_notebook", "test_plan_run", "test_step_speed"),
    "test_pseudo_label",
    *("test_signals", "test_finetuning_mae", "test_saving", "test_nonfinite", "test_bad_training"),
    *("test_convert", "test_doctor", "test_bench_step", "test_heads", "test_timm", "test_hubconf"),
    *("test_prepare_ade20k", "test_probe", "test_bad_counting", "test_wheel", "test_trace_batch"),
    *("test_house", "test_finetuning_two_processes", "test_make_pictures", "test_start_config"),
    *("test_tiled_run", "test_tiled_evaluation", "test_pack_remote", "test_fast_decoding"),
    *("test_finetuning_cls", "test_finetuning_depth", "test_finetuning_semseg", "test_dist"),
    *("test_frozen_encoder", "test_prepare_nyuv2", "test_format_table", "test_depth_units"),
    *("test_shared_memory", "test_finetuning_runs", "test_damaged_checkpoints"),
}
# Modules that take minutes; `make test` skips them.
LONG = {"test_prediction_truth", "test_mixed_finetuning", "test_label_ranks", "test_compilation"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
        if item.path.stem in LONG:
            item.add_marker("long")
    items.sort(key=lambda item: item.path.stem not in SLOW)
