"""``healsg train -m``: the jobs of a sweep or a search, and their table."""
