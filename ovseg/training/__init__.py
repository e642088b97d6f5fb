"""Training of the decoder, the same for all methods: the interface of methods (objectives), the network (decoder), cached or streamed
images (batches), the loop with its checkpoints (loop), several processes (distributed).
"""
