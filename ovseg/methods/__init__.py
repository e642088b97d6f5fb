"""Training: dense features and texts in, a trained decoder out.

Methods: mgca.py (three losses) with mining.py (memory-efficient selection of pixels and regions); mixreorg.py, tcl.py, pacl.py,
groupvit.py; supervised.py (the reference, trained on label maps). All use contrast.py (InfoNCE) and the interface in objectives.py.
Infrastructure: decoder.py, batches.py (cached or streamed images), training.py (the loop), checkpoint.py (resuming a killed
run), distributed.py (several processes).
"""
