// Small tensors of any type, read one number at a time.

#pragma once

#include "cuda/primitives.cuh"
#include "radconv.h"

namespace radconv::cuda {

__device__ __forceinline__ float as_float(const void* values, int64_t index, DType type) {
  if (type == DType::kFloat32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return type == DType::kBFloat16 ? BFloat16::to_float(bits) : Float16::to_float(bits);
}

}  // namespace radconv::cuda
