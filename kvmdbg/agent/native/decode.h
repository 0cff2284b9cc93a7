// x86-64 instructions, as far as breakpoints need to know them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// Instructions that touch registers and the stack only, and change no flags.
struct simple {
    enum { SIMPLE_NOP, SIMPLE_PUSH, SIMPLE_MOVE } kind;
    unsigned length;
    unsigned source, target; // general registers, by encoding
};

bool decode_simple(const uint8_t *code, unsigned valid, struct simple *simple);
unsigned decode_length(const uint8_t *code, unsigned valid); // at least 1, at most `valid`
bool decode_repeats(const uint8_t *code, unsigned valid);
