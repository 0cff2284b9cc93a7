// What kvmdbg.wire._layout is made of: the prelude of the source that cffi generates.
#include <stdint.h>

#include "agent.cdef.h"
