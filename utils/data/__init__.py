"""Data: folders of aligned images, transforms, samplers, loaders, rendered rooms."""
