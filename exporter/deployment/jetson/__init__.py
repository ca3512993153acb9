"""What is copied to a board: bundles, this package as a wheel, and a script that installs it."""
