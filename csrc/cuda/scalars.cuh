// Small tensors of any type, one number at a time; sums.

#pragma once

#include "cuda/primitives.cuh"
#include "radconv.h"

namespace radconv::cuda {

__device__ __forceinline__ float as_float(const void* values, int64_t index, DType type) {
  if (type == DType::kFloat32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return type == DType::kBFloat16 ? BFloat16::to_float(bits) : Float16::to_float(bits);
}

__device__ __forceinline__ void store_as(void* to, int64_t index, DType type, float value) {
  if (type == DType::kFloat32)
    static_cast<float*>(to)[index] = value;
  else
    static_cast<uint16_t*>(to)[index] =
        type == DType::kBFloat16 ? BFloat16::from_float(value) : Float16::from_float(value);
}

// Over the lanes of a warp, always in the same order.
__device__ __forceinline__ double warp_sum(double v) {
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}

}  // namespace radconv::cuda
