"""A trained model at work.

``encode.py`` returns features and attention, ``reconstruct.py`` fills in masked patches,
``predict.py`` runs fine-tuned heads, ``export.py`` writes torch.export programs and ONNX files,
``graft.py`` adds modalities to a model. Start reading at ``encode.py``.
"""
