"""Adapters to other libraries, each imported only by its users."""
