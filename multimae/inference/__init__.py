"""Inference with trained models.

``encode.py`` returns features and attention maps, ``reconstruct.py`` predicts masked patches,
``predict.py`` runs fine-tuned heads, ``export.py`` writes torch.export programs and ONNX files,
``graft.py`` adds modalities to a model. Start reading at ``encode.py``.
"""
