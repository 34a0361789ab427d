"""Faces to a model: schedule, loader, mining, losses, state and the loop over them."""
