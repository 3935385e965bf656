"""Manifests, audio, tokens and batches."""
