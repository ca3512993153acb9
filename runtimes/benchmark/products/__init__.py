"""PLUG-INS: how fast a library multiplies large matrices here, which no model can exceed. The file is the library.

Each has `products(provider, size, threads)`, which yields a data type and a call that multiplies two matrices of that
many rows and columns in it, and waits for the product.
"""
