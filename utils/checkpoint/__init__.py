"""Checkpoints: files, saving, resuming, and weights to start from.

``files`` documents and writes the format and decides which checkpoint is resumed
(``find_checkpoint``); ``saving.Saver`` writes in the background; ``start_weights`` loads and
downloads ``--finetune`` weights.
"""
