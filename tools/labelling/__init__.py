"""Pseudo labels: depth maps and class ids predicted from RGB images, for pre-training.

``label_folder.Labelling`` labels a folder: start there. ``image_batches`` reads and batches
images by input size, ``labellers`` wraps the networks of the transformers library,
``png_writers`` writes the results in threads, ``options`` holds the configuration. Command:
``tools/pseudo_label.py``.
"""
