"""The files of a run: its folder, its metrics, its checkpoints, and the locks that protect them."""
