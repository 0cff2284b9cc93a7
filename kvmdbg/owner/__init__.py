"""The one process per VM that holds it, serves gdb and control, and ends it in its time."""
