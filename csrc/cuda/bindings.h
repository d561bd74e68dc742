// The CUDA engine as Python sees it; part of radconv_ext._C and of the emulated module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/engine.h"

namespace radconv::cuda {

void bind(pybind11::module_& m);
void bind_depthwise(pybind11::module_& m);  // called by it

inline pybind11::bytes bytes_of(const std::vector<int32_t>& ints) {
  return {reinterpret_cast<const char*>(ints.data()), 4 * ints.size()};
}

// `given`, for reports and tests: shared memory and number of multiprocessors, whatever the device has.
inline Card card_of(int device, std::optional<std::pair<int, int>> given) {
  return given ? Card{given->first, given->second} : card(device);
}

inline const char* name_of(Loader loader) {
  constexpr const char* kNames[] = {"vector", "word", "scalar"};
  return kNames[static_cast<int>(loader)];
}

}  // namespace radconv::cuda
