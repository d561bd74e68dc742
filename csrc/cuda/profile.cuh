// Values of the profile on the device.

#pragma once

#include "cuda/primitives.cuh"
#include "cuda/profile_params.h"
#include "cuda/scalars.cuh"
#include "profile.h"

namespace radconv::cuda {

__device__ __forceinline__ double number(const ProfileParams& p, int place, int index) {
  return reinterpret_cast<const double*>(p.tables + place)[index];
}

// Of the families that have no sigma, `slope` is 0.
__device__ __forceinline__ ProfileValue profile_at(const ProfileParams& p, int ring, int bucket) {
  if (p.family == Family::kIdentity) return {ring == bucket ? 1.0 : 0.0, 0.0};
  if (p.family == Family::kCustom) return {as_float(p.parameter, ring * p.buckets + bucket, p.parameter_type), 0.0};
  const double offset = p.family == Family::kGaussian ? number(p, p.radii, bucket) - number(p, p.centres, ring) : 0.0;
  return profile_value(p.family, as_float(p.parameter, ring, p.parameter_type), p.sigma_min, p.sigma_max, ring, bucket,
                       offset);
}

}  // namespace radconv::cuda
