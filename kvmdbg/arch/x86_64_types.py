"""XML types of x86-64 registers: the names of their bits.

Source: Intel SDM volume 3A, sections 2.3 (EFLAGS), 2.5 (CR0, CR3, CR4), 2.2.1 (EFER); volume 1,
section 10.2.3 (MXCSR).
"""

from __future__ import annotations

from kvmdbg.arch.types import flags

CORE_TYPES = flags(
    "x64_eflags",
    4,
    "CF:0 :1 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 NT:14 RF:16 VM:17 AC:18 VIF:19 VIP:20 ID:21",
)

_VEC128 = """
<vector id="v8f16" type="ieee_half" count="8"/>
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v8_half" type="v8f16"/>
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
"""

SSE_TYPES = _VEC128 + flags(
    "x64_mxcsr",
    4,
    "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15",
)

SYSTEM_TYPES = "\n".join(
    (
        flags(
            "x64_cr0",
            8,
            "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31",
        ),
        flags("x64_cr3", 8, "PCID:0-11 PDBR:12-63"),
        flags(
            "x64_cr4",
            8,
            "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11"
            " LA57:12 VMXE:13 SMXE:14 FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22"
            " CET:23 PKS:24",
        ),
        flags("x64_efer", 8, "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 LMSLE:13 FFXSR:14 TCE:15"),
    )
)
