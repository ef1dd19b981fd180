"""Inference back ends, one module each, imported only when named (see serving/engine.py)."""
