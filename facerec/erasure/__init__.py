"""The erasure stage: whatever is known of a person or a photograph leaves every artifact."""
