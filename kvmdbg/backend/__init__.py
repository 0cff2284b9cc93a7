"""Engines: the capabilities of :mod:`kvmdbg.target` on something real."""
