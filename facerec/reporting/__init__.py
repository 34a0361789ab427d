"""Numbers to pictures: one self-contained page."""
