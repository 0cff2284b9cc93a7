// x86-64 instructions, as far as breakpoints need to know them.

#include "decode.h"

static const uint8_t ENDBR64[] = {0xf3, 0x0f, 0x1e, 0xfa};

// Bytes of ModRM, SIB and displacement; 0: cut off.
static unsigned address_form(const uint8_t *code, unsigned valid)
{
    unsigned length = 1, mode, base;

    if (!valid)
        return 0;
    mode = code[0] >> 6;
    base = code[0] & 7;
    if (mode == 3)
        return 1;
    if (base == 4) { // SIB
        if (valid < 2)
            return 0;
        length = 2;
        if (mode == 0 && (code[1] & 7) == 5)
            return length + 4;
    }
    if (mode == 0)
        return base == 5 ? length + 4 : length;
    return length + (mode == 1 ? 1 : 4);
}

static bool has_bytes(const uint8_t *code, unsigned valid, const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (i >= valid || code[i] != bytes[i])
            return false;
    }
    return true;
}

bool decode_simple(const uint8_t *code, unsigned valid, struct simple *simple)
{
    unsigned at = 0, rex = 0, form;

    *simple = (struct simple){.kind = SIMPLE_NOP};
    if (has_bytes(code, valid, ENDBR64, sizeof(ENDBR64))) {
        simple->length = sizeof(ENDBR64);
        return true;
    }
    while (at < valid && (code[at] == 0x66 || code[at] == 0x2e)) // as compilers pad nops
        at++;
    const bool prefixed = at;
    if (at < valid && (code[at] & 0xf0) == 0x40)
        rex = code[at++];
    if (at + 1 < valid && code[at] == 0x0f && code[at + 1] == 0x1f) {
        form = address_form(code + at + 2, valid - at - 2);
        simple->length = at + 2 + form;
        return form && !(code[at + 2] & 0x38);
    }
    if (at < valid && code[at] == 0x90 && !(rex & 1)) {
        simple->length = at + 1;
        return true;
    }
    if (prefixed || at >= valid)
        return false;
    if ((code[at] & 0xf8) == 0x50) {
        simple->kind = SIMPLE_PUSH;
        simple->source = (code[at] & 7) | (rex & 1) << 3;
        simple->length = at + 1;
        return true;
    }
    if ((code[at] == 0x89 || code[at] == 0x8b) && rex & 8 && at + 1 < valid &&
        code[at + 1] >> 6 == 3) {
        const unsigned reg = (code[at + 1] >> 3 & 7) | (rex & 4) << 1;
        const unsigned rm = (code[at + 1] & 7) | (rex & 1) << 3;

        simple->kind = SIMPLE_MOVE;
        simple->source = code[at] == 0x89 ? reg : rm;
        simple->target = code[at] == 0x89 ? rm : reg;
        simple->length = at + 2;
        return true;
    }
    return false;
}

// Nops, calls and jumps are what kernels patch while they run. For others the first byte must do.
unsigned decode_length(const uint8_t *code, unsigned valid)
{
    struct simple simple;
    unsigned length = 1;

    if (decode_simple(code, valid, &simple))
        length = simple.length;
    else if (valid && (code[0] == 0xe8 || code[0] == 0xe9))
        length = 5;
    else if (valid && code[0] == 0xeb)
        length = 2;
    return length <= valid ? length : 1;
}

bool decode_repeats(const uint8_t *code, unsigned valid)
{
    bool repeat = false;

    for (unsigned at = 0; at < valid; at++) {
        const uint8_t byte = code[at];

        if (byte == 0xf2 || byte == 0xf3)
            repeat = true;
        else if ((byte & 0xfe) == 0x6c || (byte & 0xfe) == 0x6e || (byte & 0xfc) == 0xa4 ||
                 (byte & 0xfe) == 0xaa || (byte & 0xfc) == 0xac)
            return repeat;
        else if (byte != 0x66 && byte != 0x67 && byte != 0x2e && byte != 0x3e &&
                 (byte & 0xfe) != 0x64 && (byte & 0xf0) != 0x40)
            return false;
    }
    return false;
}
