"""Training: a step, an epoch, and the loop over epochs."""
