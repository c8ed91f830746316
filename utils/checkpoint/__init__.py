"""Checkpoints: saving, resuming, and weights to start from.

``checkpoint_files`` documents and writes the files; ``saving.Saver`` writes in the background;
``resume_point`` decides which checkpoint is resumed, among those that ``find`` lists, ``resume``
what may have changed; ``start_weights`` loads and downloads ``--finetune`` weights,
``trained_inputs`` prepares inputs as they were trained.
"""
