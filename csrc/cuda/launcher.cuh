// The launchers of a kernel that a file has for every format: the functions of a SizedKernels.

#pragma once

#include "cuda/launches.h"
#include "cuda/primitives.cuh"

namespace radconv::cuda {

template <class Params>
using Kernel = void (*)(Params);

template <class Params, Kernel<Params> (*OF)(Format), int THREADS>
struct Launcher {
  static cudaError_t prepare(Format format, int shared) { return prepare_kernel(OF(format), shared); }
  static cudaError_t launch(Format format, unsigned blocks, int shared, cudaStream_t stream, const Params& params) {
    return launch_kernel(OF(format), blocks, THREADS, shared, stream, params);
  }
};

}  // namespace radconv::cuda
