"""The head: it decides what happens to the cluster, writes it down, and only then lets it happen."""
