"""One forward pass, seen as operations: the graph that it leaves, what is in it, and who made it."""
