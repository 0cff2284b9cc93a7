"""pytest plugin of kvmdbg."""
