"""What a sweep of several jobs is made of: composing them, sharing data, and training them as one stack."""
