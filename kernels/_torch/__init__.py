"""Vectorised torch backends: any device."""
