"""The network and its file format."""
