"""Q/DQ pairs: place them for a target, write them into a graph, and lint graphs that have them."""
