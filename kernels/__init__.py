"""Array kernels: CTC and distillation losses. No paths, configuration, zarr, dask or logging."""
