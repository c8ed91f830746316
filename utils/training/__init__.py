"""The training loop and what it updates.

Start at ``loop.fit``: schedule, step, log, evaluate, save. ``stepper`` makes one update (autocast,
backward, clipping, optimiser, EMA); ``state`` is what a checkpoint holds; ``schedule`` derives the
run plan and its learning rates; ``optim`` groups parameters
(``finetune_groups`` for fine-tuning); ``nonfinite`` handles NaN and Inf
losses, ``rollback`` returns to a checkpoint; ``seeding`` makes randomness a function of the step.
"""
