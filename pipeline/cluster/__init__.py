"""Clusters: batch scripts of the stages for Slurm, and tasks side by side on Dask's workers."""
