"""Live VMs: find, define, launch and attach them, and control their run state over QMP."""
