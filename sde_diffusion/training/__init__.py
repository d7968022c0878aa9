"""Training: the loop, the moving average of the weights, checkpoints."""
