"""What samples are worth: distances, metrics and the sweeps that measure them."""
