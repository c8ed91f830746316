"""Checkpoints: saving, resuming, and weights to start from.

``checkpoint_files`` documents and writes the files; ``saving.Saver`` writes in the background;
``resume`` decides which checkpoint is resumed and what may have changed; ``start_weights`` loads
and downloads ``--finetune`` weights, ``trained_inputs`` prepares inputs as they were trained.
"""
