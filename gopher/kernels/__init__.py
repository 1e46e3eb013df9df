"""Kernels for CUDA; imported only where Triton is installed."""
