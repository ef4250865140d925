"""Heat maps of explanations: for the terminal, for notebooks, as one HTML file, and for papers."""
