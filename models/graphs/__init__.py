"""Models of graphs: nodes in blocks, and edges by the blocks of both their nodes."""
