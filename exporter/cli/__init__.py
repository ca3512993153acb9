"""The two command lines. Nothing heavy is imported until a command needs it."""
