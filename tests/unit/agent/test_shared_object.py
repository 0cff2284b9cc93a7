"""agent.so as it is built: what QEMU will load."""

from importlib import resources

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def test_exports_only_what_is_marked() -> None:
    shared_object = resources.files("kvmdbg.agent") / "agent.so"
    with resources.as_file(shared_object) as path, path.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        exported = {s.name for s in symbols.iter_symbols() if s["st_shndx"] != "SHN_UNDEF"}
    assert exported == {"ioctl", "kvmdbg_agent_abi", "kvmdbg_agent_attach"}
