"""The agent, a shared object that runs inside QEMU, and what talks to it."""
