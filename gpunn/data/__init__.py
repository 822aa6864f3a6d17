"""Minibatches: arrays in, batches on a device out."""
