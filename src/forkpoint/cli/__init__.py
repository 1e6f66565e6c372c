"""The command line: parses before it imports torch, and prints errors for people."""
