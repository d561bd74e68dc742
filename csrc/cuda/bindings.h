// The CUDA engine as Python sees it; part of radconv_ext._C and of the emulated module.
#pragma once

#include <pybind11/pybind11.h>

namespace radconv::cuda {

void bind(pybind11::module_& m);

}  // namespace radconv::cuda
