"""Faces and a model to vectors."""
