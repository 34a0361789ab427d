"""The naming stage: vectors to names."""
