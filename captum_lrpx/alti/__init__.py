"""ALTI-Logit: its mathematics, and the recording of a forward pass that it uses."""
