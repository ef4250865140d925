"""One forward pass, seen as operations: the graph that it leaves, and who made which node of it."""
