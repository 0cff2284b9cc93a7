"""What kvmdbg knows of Linux, on top of the target's capabilities."""
