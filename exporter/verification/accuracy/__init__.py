"""Accuracy over labelled pictures, resumable."""
