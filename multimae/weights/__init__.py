"""Weight files.

``files.py`` reads and writes weight files without executing code from them, ``atomic.py`` writes
files atomically and computes checksums (without PyTorch), ``load.py`` copies weights into a model,
``convert.py`` maps names to and from ViT, ``pretrained.py`` saves and loads models with their spec,
``model_files.py`` finds, downloads and reads them, ``guess.py`` infers a missing spec,
``timm_models.py`` registers timm models. Start reading at ``pretrained.py``.
"""
