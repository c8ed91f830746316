"""Inference with trained models.

``encode.py`` returns features and attention maps, ``reconstruct.py`` predicts masked patches,
``predict.py`` runs fine-tuned heads, ``tiling/`` those of large images, ``prediction/`` is
``multimae predict``, ``export.py`` writes torch.export programs and ONNX files, ``graft.py`` adds
modalities to a model. Start reading at ``encode.py``.
"""
