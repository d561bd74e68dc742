// Which instruction set's kernels run.

#pragma once

#include "tile.h"

namespace radconv::cpu {

// The best that this machine runs, or the one that RADCONV_CPU_ISA names; an exception when it names none of them.
const Kernels& kernels();

}  // namespace radconv::cpu
