// Python module radconv_ext._C: pointers and sizes in, nothing of torch.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/thread_pool.h"
#include "module.h"
#ifdef RADCONV_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace {

using radconv::five;
using radconv::Ints;
using radconv::pointer;

// One checked convolution and its layouts; made once per problem and kept by Python.
class CpuPlan {
 public:
  CpuPlan(radconv::RingModel model, const radconv::ConvShape& shape, bool transpose, const Ints& x_strides,
          bool channels_last)
      : shape_(shape),
        model_(std::move(model)),
        x_strides_(five(x_strides)),
        out_strides_(radconv::output_strides(shape, channels_last)),
        transpose_(transpose) {}

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
  radconv::ConvShape shape_;
  radconv::RingModel model_;
  radconv::Strides x_strides_, out_strides_;
  bool transpose_;
};

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of radconv_ext: raw pointers in, nothing of torch.";
  radconv::bind_problem(m);

  py::class_<CpuPlan>(m, "CpuPlan")
      .def(py::init<radconv::RingModel, const radconv::ConvShape&, bool, const Ints&, bool>(), py::kw_only(),
           py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("x_strides"), py::arg("channels_last"))
      .def("conv", &CpuPlan::conv)
      .def("weight_gradient", &CpuPlan::weight_gradient);

  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* name : radconv::cpu::available_isas()) names.emplace_back(name);
    return names;
  });
  m.def("leave_openmp", &radconv::cpu::leave_openmp);
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
  radconv::cuda::bind(m);
#endif
}
