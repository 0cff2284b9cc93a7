# The main job of kvmdbg in one gdb session; `make demo` runs it. gdb is connected already, and has
# the kernel's symbols.
set pagination off
set confirm off

python
import os

class Typed(gdb.Command):
    """typed COMMAND: show COMMAND as if it had been typed, and execute it."""

    def __init__(self):
        super().__init__("typed", gdb.COMMAND_USER)

    def invoke(self, command, from_tty):
        print(f"(gdb) {command}")
        gdb.execute(command)

Typed()
connection = gdb.selected_inferior().connection.details
end

if $pc != 0xfff0
  echo \n--- This VM has been running: start it again\n\n
  typed monitor system_reset
  maintenance flush register-cache
end

echo \n--- At the reset vector: real mode, and no kernel in memory yet\n\n
typed info threads
typed info registers cs rip cr0
typed hbreak start_kernel
typed continue

echo \n--- The kernel's first C function: registers and code\n\n
typed info registers rip rsp cr0 cr3 cr4 efer
typed x/5i $pc
typed delete

echo \n--- Break at a kernel function by name: the first program of the guest opens a file\n\n
typed break *do_sys_openat2
typed continue
typed info registers rip rdi rsi rdx rsp eflags
typed x/s $rsi
typed x/5i $pc

echo \n--- Step by instruction; no step lands in an interrupt\n\n
typed stepi
typed stepi
typed x/i $pc
typed delete

echo \n--- Watch a variable: who counts the kernel's time?\n\n
typed watch *(unsigned long *)&jiffies_64
typed continue
typed info symbol $pc
typed continue
typed delete

echo \n--- Detach: the guest runs on\n\n
typed detach

python
if os.isatty(0) and os.isatty(1):
    print("\n--- Your turn: connected again, with the guest stopped wherever it has come to\n")
    gdb.execute("typed target remote " + connection)
    print("\nTry: break *do_sys_openat2, continue, Ctrl-C, info threads, monitor help."
          "\nkill ends the VM; detach leaves it running, and the VM ends 5 s after you quit gdb.")
    gdb.execute("set confirm on")
    gdb.execute("set pagination on")
end
