"""The rendered world, this repository's own data set.

It consists of cartoon scenes with captions and exact label maps, written as webdataset shards, and of a compact CLIP pretrained only on
their pictures and captions. Read scenes.py, then pretraining.py.
"""
