"""Blob stores of the clouds, one module each, imported only when a URL names it (see serving/blobstore.py)."""
