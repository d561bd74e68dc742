#include "module.h"

#include <utility>

namespace py = pybind11;

namespace radconv {
namespace {

ConvShape conv_shape(int64_t kernel_size, const Ints& in_size, const Ints& out_size, const Ints& stride,
                     const Ints& upsample, const Ints& dilation, const Ints& low, bool wrap, int64_t batch,
                     int64_t groups, int64_t in_per_group, int64_t out_per_group, DType dtype) {
  ConvShape shape;
  const size_t ndim = in_size.size(), missing = 3 - ndim;
  for (size_t i = 0; i < ndim; ++i)
    shape.axis[missing + i] = {in_size[i], out_size[i], kernel_size, stride[i], upsample[i], dilation[i], low[i]};
  shape.wrap = wrap;
  shape.batch = batch;
  shape.groups = groups;
  shape.in_per_group = in_per_group;
  shape.out_per_group = out_per_group;
  shape.dtype = dtype;
  return shape;
}

}  // namespace

// module_local: two modules of one process register the same types.
void bind_problem(py::module_& m) {
  py::enum_<Family>(m, "Family", py::module_local())
      .value("gaussian", Family::kGaussian)
      .value("banded", Family::kBanded)
      .value("identity", Family::kIdentity)
      .value("custom", Family::kCustom);
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16);

  py::class_<RingModel>(m, "RingModel", py::module_local())
      .def(py::init([](Family family, int rings, int buckets, std::vector<int> bucket, std::vector<double> centre,
                       std::vector<double> radius, double sigma_min, double sigma_max) {
             return RingModel{family,    rings,    buckets, std::move(bucket), std::move(centre), std::move(radius),
                              sigma_min, sigma_max};
           }),
           py::kw_only(), py::arg("family"), py::arg("rings"), py::arg("buckets"), py::arg("bucket"), py::arg("centre"),
           py::arg("radius"), py::arg("sigma_min"), py::arg("sigma_max"));
  py::class_<ConvShape>(m, "ConvShape", py::module_local())
      .def(py::init(&conv_shape), py::kw_only(), py::arg("kernel_size"), py::arg("in_size"), py::arg("out_size"),
           py::arg("stride"), py::arg("upsample"), py::arg("dilation"), py::arg("low"), py::arg("wrap"),
           py::arg("batch"), py::arg("groups"), py::arg("in_per_group"), py::arg("out_per_group"), py::arg("dtype"));
}

}  // namespace radconv
