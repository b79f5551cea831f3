"""What jobs take along and bring back, and how its chunks reach the nodes: by sendfile, and from node to node."""
