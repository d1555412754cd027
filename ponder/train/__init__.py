"""Configuration, the training loop, checkpoints and logs."""
