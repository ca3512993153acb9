"""The order of steps from a plan to a proven bundle. The only room that writes bundles."""
