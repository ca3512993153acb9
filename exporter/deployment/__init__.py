"""What leaves for somewhere else: a server, a board."""
