"""Encoders and their intermediate CTC heads."""
