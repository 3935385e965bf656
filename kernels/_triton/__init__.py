"""Compiled CUDA backend: Triton. With TRITON_INTERPRET=1 its kernels run, slowly, on a CPU."""
