"""Decoding, error rates, reports."""
