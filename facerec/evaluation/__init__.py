"""Vectors to numbers that can be believed: always on people never seen, always beside the controls."""
