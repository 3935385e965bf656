"""The kernels in float64, plain and obviously right."""
