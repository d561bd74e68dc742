"""Triton kernels of radconv_ext, installed as ``radconv_ext.triton_kernels``.

The directory lies at the top of the repository, but the top-level name ``triton_kernels`` belongs to another
distribution and is never installed: import this package by its full name alone.
"""
