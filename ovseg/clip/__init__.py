"""The frozen CLIP: dense image features (attention.py, dense.py), embeddings of images and texts (frozen.py), cached arrays (encode.py)."""
