"""The steps from a plan to a proven bundle, in order. The only room that writes bundles."""
