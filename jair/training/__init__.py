"""Training: a plan, batches from sampled sources, the loop, checkpoints that resume bit for bit, logs."""
