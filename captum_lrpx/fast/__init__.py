"""What exists for memory and time alone: without it the same relevances take more of both."""
