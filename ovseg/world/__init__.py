"""The rendered world, this repository's own data set.

Out come cartoon scenes with captions and exact label maps, written as webdataset shards, and a compact CLIP pretrained on their pictures
and captions alone. Read scenes.py, then pretraining.py.
"""
