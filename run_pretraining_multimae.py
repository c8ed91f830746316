"""Pre-train a MultiMAE on aligned images of several modalities.

    python run_pretraining_multimae.py --config cfgs/pretrain/rooms/tiny.yaml
    torchrun --nproc_per_node=8 run_pretraining_multimae.py --config cfgs/pretrain/....yaml

Every option is a flag and a YAML key; ``--help`` lists them, ``--print_config`` prints their
values. See PRETRAINING.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from utils.config.parse import parse_config, to_flat_dict
from utils.config.pretrain_options import PretrainConfig
from utils.data.dataset import MultiModalDataset
from utils.distributed.script import run_script
from utils.distributed.world import World, init_world, shutdown
from utils.logs.logger import RunLogger
from utils.logs.paths import locked_output_dir
from utils.tasks.base import Evaluator
from utils.tasks.job import Job, describe_model, report_end, save_weights, train
from utils.tasks.pretraining import (
    PretrainTask,
    build_task,
    build_train_set,
    describe_data,
    pretrain_optimizer,
    run_modalities,
    start_weights,
)
from utils.training.seeding import seed_everything
from utils.training.state import Goal
from utils.training.stepper import Precision, choose_precision


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, join the other processes, train."""
    cfg = parse_config(PretrainConfig, argv)
    world = init_world(cfg.runtime)
    pretrain(cfg, world)
    shutdown()


def pretrain(cfg: PretrainConfig, world: World) -> None:
    """Build data and model, train, and write the weights."""
    output_dir = cfg.checkpoint.output_dir
    seed_everything(cfg.runtime.seed)
    with (
        locked_output_dir(output_dir, world) as paths,
        RunLogger(cfg.log, output_dir, to_flat_dict(cfg), is_main=world.is_main) as logger,
    ):
        job = Pretraining(cfg, world)
        task = job.build_task().to(world.device)
        precision = choose_precision(cfg.runtime.precision, world.device)
        logger.info(describe_model(job, task, precision))
        state = train(job, task, precision, paths, logger)
        if paths is not None:
            save_weights(state, paths, world)
            report_end(logger, job.goal, state.best, pretrained=True)


class Pretraining(Job[PretrainTask]):
    """Masked reconstruction of every output modality."""

    cfg: PretrainConfig
    goal = Goal("gain")  # over a constant baseline, see utils.tasks.reconstruction
    starts_with_heads = True

    def __init__(self, cfg: PretrainConfig, world: World) -> None:
        """Select the modalities, prepared as the weights to start from say."""
        self.cfg, self.world, self.skip_grad = cfg, world, cfg.optim.skip_grad
        self.start = start_weights(cfg)
        self.inputs, self.outputs = run_modalities(cfg, self.start, world)
        self.modalities = (*self.inputs, *self.outputs)
        self.mix = cfg.data.mix

    def build_task(self) -> PretrainTask:
        """MultiMAE and its losses."""
        return build_task(self.cfg, self.inputs, self.outputs)

    def train_set(self) -> MultiModalDataset:
        """Augmented samples of ``--data_path``."""
        return build_train_set(self.cfg, tuple(dict.fromkeys(self.modalities)), self.world)

    def describe(self, dataset: MultiModalDataset) -> Iterable[str]:
        """Statistics of labels and scalar maps."""
        return describe_data(self.cfg, dataset)

    def optimizer(self, task: PretrainTask) -> Optimizer:
        """Optimiser over model and balancer."""
        return pretrain_optimizer(self.cfg, task)

    def train_evaluators(
        self,
        task: PretrainTask,
        train_set: MultiModalDataset,
        precision: Precision,
        logger: RunLogger,
    ) -> Sequence[Evaluator]:
        """Masked losses and pictures of ``--eval_data_path``."""
        evaluators: list[Evaluator] = []
        path = self.cfg.data.eval_data_path
        if path:
            from utils.tasks.reconstruction import build_evaluators

            evaluators += build_evaluators(
                self.cfg, path, task, train_set, self.world, precision, logger
            )
        if self.cfg.log.probe_freq:
            from utils.training.probes import build_probe

            evaluators.append(build_probe(self.cfg, task.inputs, self.world, precision))
        return evaluators


if __name__ == "__main__":
    run_script(main)
