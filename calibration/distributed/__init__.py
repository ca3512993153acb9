"""Work on a source's pictures in shards: in this process, or on the workers of a Ray cluster."""
