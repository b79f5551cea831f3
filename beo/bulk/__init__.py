"""The bulk plane: immutable chunks go from the heads to the nodes, and from node to node, by sendfile."""
