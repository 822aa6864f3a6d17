"""The training loop: a step, an epoch, and what is around them."""
