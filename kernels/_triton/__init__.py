"""Compiled CUDA backend: Triton. With TRITON_INTERPRET=1 its kernels run, slowly, on a CPU.

No kernel is specialised for a size that changes from batch to batch: Triton would compile another
variant, for a second or so, whenever one is or is not a multiple of 16.
"""
