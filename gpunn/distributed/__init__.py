"""Training on several processes: communication between them, and data-parallel updates."""
