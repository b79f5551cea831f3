"""The tree of files that all nodes share: a replicated volume, who serves it, and how nodes see it as a file system."""
