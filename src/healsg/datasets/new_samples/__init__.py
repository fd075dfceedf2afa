"""New samples for a trained network, preprocessed as its training samples were."""
