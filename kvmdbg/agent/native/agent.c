// The agent: the part of kvmdbg that runs inside the QEMU process. Built with hidden visibility;
// what QEMU or the injector must find is marked.

__attribute__((visibility("default"))) const unsigned int kvmdbg_agent_abi = 0;
