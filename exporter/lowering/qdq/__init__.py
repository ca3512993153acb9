"""Where Q/DQ pairs go, for each target, and how they are written."""
