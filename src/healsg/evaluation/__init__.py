"""Using a trained network: evaluation, prediction, ensembles, heat maps."""
