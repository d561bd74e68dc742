// Python module radconv_ext._C: pointers and sizes in, nothing of torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "radconv.h"
#ifdef RADCONV_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace {

using Ints = std::vector<int64_t>;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// One checked convolution and its layouts; made once per problem and kept by Python.
class CpuPlan {
 public:
  CpuPlan(radconv::RingModel model, int64_t kernel_size, const Ints& in_size, const Ints& out_size, const Ints& stride,
          const Ints& upsample, const Ints& dilation, const Ints& low, bool wrap, int64_t batch, int64_t groups,
          int64_t in_per_group, int64_t out_per_group, radconv::DType dtype, bool transpose, const Ints& x_strides,
          bool channels_last)
      : model_(std::move(model)), x_strides_(five(x_strides)), transpose_(transpose) {
    const size_t ndim = in_size.size(), missing = 3 - ndim;
    for (size_t i = 0; i < ndim; ++i)
      shape_.axis[missing + i] = {in_size[i], out_size[i], kernel_size, stride[i], upsample[i], dilation[i], low[i]};
    shape_.wrap = wrap;
    shape_.batch = batch;
    shape_.groups = groups;
    shape_.in_per_group = in_per_group;
    shape_.out_per_group = out_per_group;
    shape_.dtype = dtype;
    const radconv::Axis* a = shape_.axis;
    const int64_t channels = groups * out_per_group, pixels = a[0].out * a[1].out * a[2].out;
    const int64_t pixel = channels_last ? channels : 1;
    out_strides_ = {
        {channels * pixels, channels_last ? 1 : pixels, a[1].out * a[2].out * pixel, a[2].out * pixel, pixel}};
  }

  // Strides of an input that are not those of the problem's x (a gradient's) come with the call.
  bool conv(uintptr_t x, const std::optional<Ints>& strides, uintptr_t w, uintptr_t parameter, uintptr_t bias,
            uintptr_t y, int threads) const {
    const radconv::Strides in_strides = strides ? five(*strides) : x_strides_;
    py::gil_scoped_release release;
    return radconv::cpu::conv(shape_, model_, transpose_, pointer<void>(x), in_strides, pointer<float>(w),
                              pointer<float>(parameter), pointer<float>(bias), pointer<void>(y), out_strides_, threads);
  }

  bool weight_gradient(uintptr_t x, uintptr_t grad, const Ints& grad_strides, uintptr_t w, uintptr_t parameter,
                       uintptr_t grad_w, uintptr_t grad_parameter, int threads) const {
    const radconv::Strides gs = five(grad_strides);
    py::gil_scoped_release release;
    return radconv::cpu::weight_gradient(shape_, model_, transpose_, pointer<void>(x), x_strides_, pointer<void>(grad),
                                         gs, pointer<float>(w), pointer<float>(parameter), pointer<float>(grad_w),
                                         pointer<float>(grad_parameter), threads);
  }

 private:
  // (batch, channel, *spatial) to five, leading spatial axes of size 1
  static radconv::Strides five(const Ints& given) {
    radconv::Strides strides{};
    strides.of[0] = given[0];
    strides.of[1] = given[1];
    for (size_t i = 2; i < given.size(); ++i) strides.of[i + 5 - given.size()] = given[i];
    return strides;
  }

  radconv::ConvShape shape_;
  radconv::RingModel model_;
  radconv::Strides x_strides_{}, out_strides_{};
  bool transpose_;
};

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of radconv_ext: raw pointers in, nothing of torch.";

  py::enum_<radconv::Family>(m, "Family")
      .value("gaussian", radconv::Family::kGaussian)
      .value("banded", radconv::Family::kBanded)
      .value("identity", radconv::Family::kIdentity)
      .value("custom", radconv::Family::kCustom);
  py::enum_<radconv::DType>(m, "DType")
      .value("float32", radconv::DType::kFloat32)
      .value("bfloat16", radconv::DType::kBFloat16);

  py::class_<radconv::RingModel>(m, "RingModel")
      .def(py::init([](radconv::Family family, int rings, int buckets, std::vector<int> bucket,
                       std::vector<double> centre, std::vector<double> radius, double sigma_min, double sigma_max) {
             return radconv::RingModel{
                 family, rings, buckets, std::move(bucket), std::move(centre), std::move(radius), sigma_min, sigma_max};
           }),
           py::kw_only(), py::arg("family"), py::arg("rings"), py::arg("buckets"), py::arg("bucket"), py::arg("centre"),
           py::arg("radius"), py::arg("sigma_min"), py::arg("sigma_max"));

  py::class_<CpuPlan>(m, "CpuPlan")
      .def(py::init<radconv::RingModel, int64_t, const Ints&, const Ints&, const Ints&, const Ints&, const Ints&,
                    const Ints&, bool, int64_t, int64_t, int64_t, int64_t, radconv::DType, bool, const Ints&, bool>(),
           py::kw_only(), py::arg("model"), py::arg("kernel_size"), py::arg("in_size"), py::arg("out_size"),
           py::arg("stride"), py::arg("upsample"), py::arg("dilation"), py::arg("low"), py::arg("wrap"),
           py::arg("batch"), py::arg("groups"), py::arg("in_per_group"), py::arg("out_per_group"), py::arg("dtype"),
           py::arg("transpose"), py::arg("x_strides"), py::arg("channels_last"))
      .def("conv", &CpuPlan::conv)
      .def("weight_gradient", &CpuPlan::weight_gradient);

  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* name : radconv::cpu::available_isas()) names.emplace_back(name);
    return names;
  });
  m.def("current_isa", [] { return std::string(radconv::cpu::current_isa()); });

#ifdef RADCONV_WITH_CUDA
  m.def("device_info", [] {
    const radconv::cuda::DeviceInfo info = radconv::cuda::device_info();
    py::dict d;
    d["runtime_version"] = info.runtime_version;
    d["driver_version"] = info.driver_version;
    d["device_count"] = info.device_count;
    return d;
  });
#endif
}
