"""Training of the decoder, the same for all methods.

objectives.py is the interface of methods (a batch, InfoNCE, the module that is trained) and decoder.py the network. batches.py opens cached
or streamed images, loop.py trains and resumes, distributed.py runs several processes.
"""
