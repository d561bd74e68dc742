// What running plans takes: checks, the kernels of a size, small tensors.  Part of the files that launch.

#pragma once

#include <cuda_runtime_api.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/engine.h"
#include "cuda/launches.h"

namespace radconv::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next launch's check would report it as its own
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

// Launches and attributes go to the current device, and a caller that forgot to make it the tensors' must hear of it.
inline void expect_current(int device) {
  int current = -1;
  check(cudaGetDevice(&current), "asking for the current device");
  if (current != device)
    throw std::runtime_error("expected device " + std::to_string(device) + " to be current, got " +
                             std::to_string(current));
}

template <class Params>
const SizedKernels<Params>& of_size(std::initializer_list<const SizedKernels<Params>*> all, const KernelSize& size) {
  for (const auto* kernels : all)
    if (kernels->k == size.k && kernels->depth == size.depth) return *kernels;
  throw std::logic_error("no kernel of size " + std::to_string(size.k) + " was compiled");
}

inline void set(ProfileParams& profile, WeightParams& weights, const Small& w, const Small& parameter,
                const void* tables) {
  weights.w = w.data;
  weights.w_type = w.type;
  profile.parameter = parameter.data;
  profile.parameter_type = parameter.type;
  profile.tables = static_cast<const int*>(tables);
}

}  // namespace radconv::cuda
