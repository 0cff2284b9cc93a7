"""XML types of aarch64 registers: the names of their bits.

Source: Arm ARM (DDI 0487), sections C5.2 (PSTATE as SPSR_EL1 holds it, FPCR, FPSR) and D19.2
(system registers).
"""

from __future__ import annotations

from kvmdbg.arch.types import flags

_PSTATE = (
    "SP:0 EL:2-3 nRW:4 F:6 I:7 A:8 D:9 BTYPE:10-11 SSBS:12 ALLINT:13 IL:20 SS:21 PAN:22 UAO:23"
    " DIT:24 TCO:25 V:28 C:29 Z:30 N:31"
)

CORE_TYPES = flags("a64_pstate", 4, _PSTATE)


def _vector(name: str, base: str, count: int) -> str:
    return f'<vector id="{name}" type="{base}" count="{count}"/>'


def _views(name: str, fields: str) -> str:
    """A union of vectors from words ``FIELD:TYPE``."""
    pairs = [word.split(":") for word in fields.split()]
    views = "\n".join(f'<field name="{field}" type="{kind}"/>' for field, kind in pairs)
    return f'<union id="{name}">\n{views}\n</union>'


# gdb's own names for the parts, from the widest down: $v0.d.f, $v0.b.u and so on.
FPU_TYPES = "\n".join(
    (
        *(
            _vector(f"v{n}{kind}", base, count)
            for n, count, kinds in (
                ("d", 2, ("ieee_double", "uint64", "int64")),
                ("s", 4, ("ieee_single", "uint32", "int32")),
                ("h", 8, ("ieee_half", "uint16", "int16")),
            )
            for kind, base in zip("fus", kinds, strict=True)
        ),
        _vector("vbu", "uint8", 16),
        _vector("vbs", "int8", 16),
        _vector("vqu", "uint128", 1),
        _vector("vqs", "int128", 1),
        *(_views(f"v{n}n", f"f:v{n}f u:v{n}u s:v{n}s") for n in "dsh"),
        *(_views(f"v{n}n", f"u:v{n}u s:v{n}s") for n in "bq"),
        _views("aarch64v", "d:vdn s:vsn h:vhn b:vbn q:vqn"),
        flags(
            "a64_fpsr",
            4,
            "IOC:0 DZC:1 OFC:2 UFC:3 IXC:4 IDC:7 QC:27 V:28 C:29 Z:30 N:31",
        ),
        flags(
            "a64_fpcr",
            4,
            "FIZ:0 AH:1 NEP:2 IOE:8 DZE:9 OFE:10 UFE:11 IXE:12 EBF:13 IDE:15 Len:16-18 FZ16:19"
            " Stride:20-21 RMode:22-23 FZ:24 DN:25 AHP:26",
        ),
    )
)

_SCTLR = flags(
    "a64_sctlr",
    8,
    "M:0 A:1 C:2 SA:3 SA0:4 CP15BEN:5 nAA:6 ITD:7 SED:8 UMA:9 EnRCTX:10 EOS:11 I:12"
    " EnDB:13 DZE:14 UCT:15 nTWI:16 nTWE:18 WXN:19 TSCXT:20 IESB:21 EIS:22 SPAN:23 E0E:24"
    " EE:25 UCI:26 EnDA:27 nTLSMD:28 LSMAOE:29 EnIB:30 EnIA:31 CMOW:32 BT0:35 BT1:36"
    " ITFSB:37 TCF0:38-39 TCF:40-41 ATA0:42 ATA:43 DSSBS:44 TWEDEn:45 TWEDEL:46-49"
    " EnASR:54 EnAS0:55 EnALS:56 EPAN:57",
)
_TCR = flags(
    "a64_tcr",
    8,
    "T0SZ:0-5 EPD0:7 IRGN0:8-9 ORGN0:10-11 SH0:12-13 TG0:14-15 T1SZ:16-21 A1:22 EPD1:23"
    " IRGN1:24-25 ORGN1:26-27 SH1:28-29 TG1:30-31 IPS:32-34 AS:36 TBI0:37 TBI1:38 HA:39"
    " HD:40 HPD0:41 HPD1:42 TBID0:51 TBID1:52 NFD0:53 NFD1:54 E0PD0:55 E0PD1:56 TCMA0:57"
    " TCMA1:58 DS:59",
)
_TTBR = flags(
    "a64_ttbr",
    8,
    "CnP:0 BADDR:1-47 ASID:48-63",
)
_ESR = flags(
    "a64_esr",
    8,
    "ISS:0-24 IL:25 EC:26-31 ISS2:32-55",
)
_SPSR = flags(
    "a64_spsr",
    8,
    _PSTATE,
)
_HCR = flags(
    "a64_hcr",
    8,
    "VM:0 SWIO:1 PTW:2 FMO:3 IMO:4 AMO:5 VF:6 VI:7 VSE:8 FB:9 DC:12 TWI:13 TWE:14 TID0:15"
    " TID1:16 TID2:17 TID3:18 TSC:19 TIDCP:20 TACR:21 TSW:22 TPCP:23 TPU:24 TTLB:25 TVM:26"
    " TGE:27 TDZ:28 HCD:29 TRVM:30 RW:31 CD:32 ID:33 E2H:34 TLOR:35"  # codespell:ignore
    " TERR:36 TEA:37 APK:40"
    " API:41 NV:42 NV1:43 AT:44 NV2:45 FWB:46 FIEN:47 TID4:49 TICAB:50 TOCU:52 ENSCXT:53"
    " ATA:56 DCT:57 TID5:58",
)

# Types belong to one feature.
SYSTEM_TYPES = "\n".join((_SCTLR, _TCR, _TTBR, _ESR, _SPSR))
EL2_TYPES = "\n".join((_HCR, _SCTLR, _TTBR, _ESR, _SPSR))
