"""What a sweep of several jobs is made of: composing their configurations, and sharing data between them."""
