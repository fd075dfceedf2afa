"""Learning rate schedulers: curves that are functions of progress, and reduction on plateau."""
