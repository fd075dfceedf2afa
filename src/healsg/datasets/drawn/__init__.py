"""Images and volumes that are drawn on the spot: pure functions of (seed, index)."""
