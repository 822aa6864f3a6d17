"""Training on several processes at once: how they talk, and one optimizer for all of them."""
