"""Training: dense features and texts in, a trained decoder out.

Read alignment.py (MGCA's three losses), mining.py (what they select, without holding all similarities), decoder.py, batches.py (cached or
streamed images), training.py (the loop), checkpoint.py (what a killed run goes on from), distributed.py (several processes).
"""
