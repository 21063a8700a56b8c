"""Evaluates CaLID and the systems of the papers, side by side."""
