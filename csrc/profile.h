// One value of a profile P by its family's formula, on the host and on the device.

#pragma once

#include <cmath>

#include "radconv.h"

#ifdef __CUDACC__
#define RADCONV_EVERYWHERE __host__ __device__
#else
#define RADCONV_EVERYWHERE
#endif

namespace radconv {

struct ProfileValue {
  double value;
  double slope;  // derivative by sigma; 0 where sigma is clamped
};

// Ring `ring` at bucket `bucket`, which lies `offset` = radius - centre away (gaussian only); families with sigma.
RADCONV_EVERYWHERE inline ProfileValue profile_value(Family family, double given, double sigma_min, double sigma_max,
                                                     int ring, int bucket, double offset) {
  constexpr double kSqrt2Pi = 2.5066;  // as the released package rounds it: its numbers depend on it
  // written so that NaN stays NaN
  const double sigma = given < sigma_min ? sigma_min : given > sigma_max ? sigma_max : given;
  const bool moves = given >= sigma_min && given <= sigma_max;
  if (family == Family::kGaussian) {
    const double value = exp(-offset * offset / (2 * sigma * sigma));
    return {value, moves ? value * offset * offset / (sigma * sigma * sigma) : 0.0};
  }
  const double bands = (bucket - ring) / sigma;
  const double value = exp(-0.5 * bands * bands) / (kSqrt2Pi * sigma);
  return {value, moves ? value * (bands * bands - 1) / sigma : 0.0};
}

}  // namespace radconv
