"""Models that a Triton server runs: their address, how it is reached, and whether they are the bundle's."""
