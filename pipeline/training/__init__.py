"""Objective, optimisers, trainer, checkpoints."""
