"""How fast a bundle runs on each backend: measured in interleaved rounds, one process for each backend."""
