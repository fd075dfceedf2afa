"""Starting runs: in this process, in others, on several processes, and the worker that takes jobs."""
