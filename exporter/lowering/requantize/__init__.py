"""Files that are quantized already: read what was trained or measured, and write it as a target wants it."""
