// What both Python modules (radconv_ext._C and the emulated kernels' one) say about a problem.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "radconv.h"

namespace radconv {

using Ints = std::vector<int64_t>;

// An address that Python hands over; 0: null.
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (batch, channel, *spatial) to five, leading spatial axes of stride 0.
inline Strides five(const Ints& given) {
  Strides strides{};
  strides.of[0] = given[0];
  strides.of[1] = given[1];
  for (size_t i = 2; i < given.size(); ++i) strides.of[i + 5 - given.size()] = given[i];
  return strides;
}

// Strides of a new output.
inline Strides output_strides(const ConvShape& shape, bool channels_last) {
  const Axis* a = shape.axis;
  const int64_t channels = shape.groups * shape.out_per_group, pixels = a[0].out * a[1].out * a[2].out;
  const int64_t pixel = channels_last ? channels : 1;
  return {{channels * pixels, channels_last ? 1 : pixels, a[1].out * a[2].out * pixel, a[2].out * pixel, pixel}};
}

// Family, DType, RingModel, ConvShape.
void bind_problem(pybind11::module_& m);

}  // namespace radconv
