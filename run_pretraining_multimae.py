"""Pre-train a MultiMAE on aligned images of several modalities.

    python run_pretraining_multimae.py --config cfgs/pretrain/rooms/tiny.yaml
    torchrun --nproc_per_node=8 run_pretraining_multimae.py --config cfgs/pretrain/....yaml

Every option is a flag and a YAML key; ``--help`` lists them, ``--print_config`` prints their
values. See PRETRAINING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multimae.weights.pretrained import save_model
from utils.checkpoint.resume import resume
from utils.config.parse import parse_config, to_flat_dict
from utils.config.pretrain_options import PretrainConfig
from utils.distributed.script import run_script
from utils.distributed.sharding import shard
from utils.distributed.world import World, init_world, shutdown
from utils.logs.logger import RunLogger
from utils.logs.paths import RunPaths, prepare_output_dir
from utils.tasks.loaders import train_loader
from utils.tasks.pretraining import (
    build_task,
    build_train_set,
    load_init_weights,
    pretrain_optimizer,
    run_modalities,
)
from utils.tasks.reconstruction import GOAL, build_evaluators
from utils.training.loop import fit, make_training_run
from utils.training.schedule import make_run_plan
from utils.training.seeding import seed_everything
from utils.training.state import TrainState
from utils.training.stepper import Stepper, choose_precision


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, train."""
    cfg = parse_config(PretrainConfig, argv)
    world = init_world(cfg.runtime)
    train(cfg, world)
    shutdown()


def train(cfg: PretrainConfig, world: World) -> None:
    """Build data, model and optimiser, and train."""
    runtime, output_dir = cfg.runtime, cfg.checkpoint.output_dir
    prepare_output_dir(output_dir, cfg, world)
    seed_everything(runtime.seed)

    inputs, outputs = run_modalities(cfg)
    task = build_task(cfg, inputs, outputs).to(world.device)
    train_set = build_train_set(cfg, task.modalities)
    loader, sampler = train_loader(cfg, train_set, world)

    plan = make_run_plan(len(sampler), world.size, cfg.optim, runtime, blr=cfg.optim.blr)
    precision = choose_precision(runtime.precision, world.device)
    full_model_builder = shard(task, (), world, runtime, precision.dtype)
    state = TrainState(
        task,
        pretrain_optimizer(cfg, task),
        precision.scaler(),
        global_batch=plan.global_batch,
        config=to_flat_dict(cfg),
        full_model_builder=full_model_builder,
    )
    resumed_from = resume(state, cfg.checkpoint, world)
    if resumed_from is None:
        state.start_at(runtime.start_epoch, plan.steps_per_epoch)
    stepper = Stepper(state, world, plan, precision, cfg.optim, runtime, cfg.optim.skip_grad)

    with RunLogger(cfg.log, output_dir, state.config, is_main=world.is_main) as logger:
        millions = sum(p.numel() for p in task.model.parameters()) / 1e6
        logger.info(f"{cfg.model.model}: {millions:.1f} M parameters, {precision} on {world}")
        logger.info(f"{len(train_set)} images, {plan.describe()}")
        if resumed_from is not None:
            logger.info(f"resumed from {resumed_from} after epoch {state.epoch}, step {state.step}")
        else:
            for line in load_init_weights(cfg, task, train_set):
                logger.info(line)
        evaluators = build_evaluators(cfg, task, train_set, world, precision, logger)
        fit(
            make_training_run(
                cfg, state, loader, sampler, plan, stepper, logger, evaluators, cfg.log, GOAL
            )
        )
        if output_dir:
            weights = state.scored_weights(world)
            path = RunPaths(Path(output_dir)).model
            if world.is_main:
                save_model(weights, task.model.spec, path)
            logger.info(f"weights: {path}")


if __name__ == "__main__":
    run_script(main)
