"""Weight files.

``files.py`` reads weight files without executing code from them, ``write.py`` writes them,
``atomic.py`` makes writes atomic and computes checksums (without PyTorch), ``load.py`` copies
weights into a model,
``convert.py`` maps names to and from ViT, ``pretrained.py`` saves and loads models with their spec,
``model_files.py`` finds and reads them, ``downloads.py`` gets URLs, ``published.py`` lists the
authors' weights, ``guess.py`` infers a missing spec,
``timm_models.py`` registers timm models. Start reading at ``pretrained.py``.
"""
