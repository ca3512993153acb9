"""Measure bundles on every backend that is here, in interleaved rounds, and say which is the fastest."""
