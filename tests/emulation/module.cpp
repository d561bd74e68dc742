// Python module radconv_ext._emulated: the CUDA engine with its kernels run by the emulation.

#include "module.h"

#include "cuda/bindings.h"

PYBIND11_MODULE(_emulated, m) {
  m.doc() = "CUDA kernels of radconv_ext, emulated on the CPU.";
  radconv::bind_problem(m);
  radconv::cuda::bind(m);
}
