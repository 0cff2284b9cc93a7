"""KVM's API as values: ioctls are built and decoded here, and executed by a transport.

:mod:`~kvmdbg.kvm.ioctl` says what an ioctl is, :mod:`~kvmdbg.kvm.transport` who executes it;
:mod:`~kvmdbg.kvm.local` is the transport for VMs of our own process and the one module here that
does I/O. Registers, debug control, tiny guests and the cases to try KVM with are in ``x86`` and
``arm64``. The source for all of it is the kernel's Documentation/virt/kvm/api.rst.
"""
