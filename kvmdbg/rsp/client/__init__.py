"""The other side: talking to somebody else's stub, QEMU's above all."""
