# The main job of kvmdbg in one gdb session; `make demo` runs it on a VM that is frozen at its
# first instruction. gdb is connected already, and has the kernel's symbols.
set pagination off
set confirm off
set disassembly-flavor att

echo \n== At the reset vector: no kernel in memory yet\n
info threads
hbreak start_kernel
continue

echo \n== The kernel's first C function: registers and code\n
info registers rip rsp rdi cr0 cr3 cr4 efer
x/4i $pc
delete

echo \n== Break at a kernel function by name; it is hit once the guest's programs run\n
break do_sys_openat2
continue
info registers rip rdi rsi rdx rsp eflags
x/6i $pc
printf "a program opens %s\n", (char *)$rsi

echo \n== Step by instruction; interrupts stay masked meanwhile\n
stepi
x/i $pc
stepi
x/i $pc
delete

echo \n== Watch a variable: who counts the kernel's time?\n
watch *(unsigned long *)&jiffies_64
continue
x/i $pc
continue
delete

echo \n== Detach: the guest runs on\n
detach
