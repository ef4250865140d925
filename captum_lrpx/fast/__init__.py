"""Savings of memory and time: without them the same relevances take more of both."""
