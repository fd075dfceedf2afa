"""From a command line to a checked configuration. Nothing here imports torch."""
