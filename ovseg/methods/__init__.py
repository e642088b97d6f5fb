"""Training: dense features and texts in, a trained decoder out.

The methods: mgca.py (its three losses) with mining.py (what they select, without holding all similarities); mixreorg.py, tcl.py, pacl.py,
groupvit.py; supervised.py (the reference, on label maps). They share contrast.py (InfoNCE) and what objectives.py says of a method.
The machinery: decoder.py, batches.py (cached or streamed images), training.py (the loop), checkpoint.py (what a killed run goes
on from), distributed.py (several processes).
"""
