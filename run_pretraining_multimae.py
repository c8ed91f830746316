"""Pre-train a MultiMAE on aligned images of several modalities.

    python run_pretraining_multimae.py --config cfgs/pretrain/rooms/tiny.yaml
    torchrun --nproc_per_node=8 run_pretraining_multimae.py --config cfgs/pretrain/....yaml

Every option is a flag and a YAML key; ``--help`` lists them, ``--print_config`` prints their
values. See PRETRAINING.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from multimae.weights.pretrained import save_model
from utils.checkpoint.resume import find_checkpoint, resume
from utils.config.parse import parse_config, to_flat_dict
from utils.config.pretrain_options import PretrainConfig
from utils.distributed.script import run_script
from utils.distributed.sharding import shard
from utils.distributed.world import World, init_world, shutdown
from utils.logs.logger import RunLogger
from utils.logs.paths import RunPaths, locked_output_dir, record_start
from utils.tasks.loaders import run_identity, train_loader
from utils.tasks.pretraining import (
    PretrainTask,
    build_task,
    build_train_set,
    describe_data,
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
    output_dir = cfg.checkpoint.output_dir
    seed_everything(cfg.runtime.seed)
    with (
        locked_output_dir(output_dir, world) as paths,
        RunLogger(cfg.log, output_dir, to_flat_dict(cfg), is_main=world.is_main) as logger,
    ):
        task, state = _train(cfg, world, paths, logger)
        if paths is not None:
            weights = state.scored_weights(world)
            if world.is_main:
                save_model(weights, task.model.spec, paths.model)
            logger.info(f"weights: {paths.model}")


def _train(
    cfg: PretrainConfig, world: World, paths: RunPaths | None, logger: RunLogger
) -> tuple[PretrainTask, TrainState]:
    runtime = cfg.runtime
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
        identity=run_identity(train_set, (*inputs, *outputs)),
        full_model_builder=full_model_builder,
    )
    millions = sum(p.numel() for p in task.model.parameters()) / 1e6
    logger.info(f"{cfg.model.model}: {millions:.1f} M parameters, {precision} on {world}")
    logger.info(f"{len(train_set)} images, {plan.describe()}")
    for problem in plan.warnings(cfg.optim, cfg.optim.blr):
        logger.info(f"warning: {problem}")
    for line in describe_data(cfg, train_set):
        logger.info(line)
    report, checkpoint = "", find_checkpoint(cfg.checkpoint, world, logger.info)
    if checkpoint is not None:
        resume(state, checkpoint, cfg, world, logger.info)
    else:
        state.start_at(runtime.start_epoch, plan.steps_per_epoch)
        report = load_init_weights(cfg, task, train_set, logger.info)
    stepper = Stepper(state, world, plan, precision, cfg.optim, runtime, cfg.optim.skip_grad)
    evaluators = build_evaluators(cfg, task, train_set, world, precision, logger)
    run = make_training_run(
        cfg, state, loader, sampler, plan, stepper, logger, evaluators, cfg.log, GOAL
    )
    resumed = checkpoint is not None
    record_start(paths, cfg, world, logger.info, resumed=resumed, report=report)
    fit(run)
    return task, state


if __name__ == "__main__":
    run_script(main)
