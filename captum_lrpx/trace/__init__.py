"""One forward pass read as operations: its autograd graph, and the origin of each node."""
