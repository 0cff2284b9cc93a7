// What kvmdbg._native is made of: also the prelude of the source that cffi generates.
#include <stddef.h>

#include "native.cdef.h"
