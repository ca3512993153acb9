"""Measure accuracy on labelled images; an evaluation that was stopped can go on."""
