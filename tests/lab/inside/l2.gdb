# Every kind of stop that the lab's KVM has to get right for an L2.
hbreak *do_sys_openat2
continue
printf "hardware: stopped at %d\n", $pc == (unsigned long)&do_sys_openat2
# Into an interrupt, perhaps: under KVM QEMU's stub cannot always mask them.
stepi
printf "step: moved %d\n", $pc != (unsigned long)&do_sys_openat2
delete

break *do_sys_openat2
continue
printf "software: stopped at %d\n", $pc == (unsigned long)&do_sys_openat2
continue
printf "again: stopped at %d\n", $pc == (unsigned long)&do_sys_openat2

# The function's own frame: it saves registers there.
awatch -l *(unsigned long *)($sp - 32)
continue
delete
detach
