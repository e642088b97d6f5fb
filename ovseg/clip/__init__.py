"""The frozen CLIP.

In come images and texts; out go dense image features and text embeddings, cached on disk. Read dense.py (how the patches of an image
tower are read), frozen.py (any open_clip model with a ViT), features.py (the cache), encoding.py (filling it).
"""
