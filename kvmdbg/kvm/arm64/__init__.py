"""arm64: what KVM_SET_GUEST_DEBUG takes there, registers, tiny guests, and the cases for them."""
