"""Photographs to faces: list, decode, detect, choose the subject, straighten, compact, publish."""
