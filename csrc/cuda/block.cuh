// What a block of the convolution works on.

#pragma once

#include "cuda/conv.h"
#include "cuda/halo.cuh"

namespace radconv::cuda {

__device__ __forceinline__ Place place_of(const ConvParams& p, unsigned block) {
  Place at;
  at.out_block = take(block, p.out_blocks);
  at.group = take(block, p.groups);
  place_tile(p, at, block);
  return at;
}

// Kept in shared memory.
__device__ __forceinline__ Place load_place(const ConvParams& p, const unsigned char* memory) {
  return load_shared<Place>(memory + p.place_at);
}

}  // namespace radconv::cuda
