"""The frozen CLIP.

Encodes images and texts into dense image features and text embeddings, cached on disk. See dense.py (reading patch features from an
image tower), frozen.py (any open_clip model with a ViT), encode.py (the cache).
"""
