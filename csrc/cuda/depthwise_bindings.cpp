// The depthwise kernels as Python sees them: the interfaces of CudaPlan and CudaGradientPlan.

#include <optional>

#include "cuda/bindings.h"
#include "cuda/depthwise_engine.h"
#include "module.h"

namespace py = pybind11;

namespace radconv::cuda {
namespace {

py::dict facts_of(const DepthwiseGeometry& p, const KernelSize& size, unsigned blocks, int shared, int64_t workspace) {
  py::dict d;
  d["kernel"] = py::make_tuple(size.k, size.depth);
  d["blocks"] = blocks;
  d["shared"] = shared;
  d["workspace"] = workspace;
  d["tile"] = py::make_tuple(p.tile[0], p.tile[1], p.tile[2]);
  d["tiles"] = py::make_tuple(p.tiles[0], p.tiles[1], p.tiles[2]);
  d["classes"] = py::make_tuple(p.classes[0], p.classes[1], p.classes[2]);
  d["halo_buffers"] = p.buffers;
  return d;
}

// Full float32 whether `exact` or not: nothing here is multiplied by matrix units.
class BoundDepthwisePlan {
 public:
  BoundDepthwisePlan(const RingModel& model, const ConvShape& shape, bool transpose, bool /* exact */,
                     const Ints& x_strides, bool channels_last, int device, std::optional<std::pair<int, int>> card)
      : plan_(make_depthwise_plan(shape, model, transpose, five(x_strides), output_strides(shape, channels_last),
                                  card_of(device, card))),
        device_(device) {}

  py::bytes tables() const { return bytes_of(plan_.tables); }

  void prepare() const { cuda::prepare(plan_, device_); }

  void run(uintptr_t stream, uintptr_t x, uintptr_t w, DType w_type, uintptr_t parameter, DType parameter_type,
           uintptr_t bias, DType bias_type, uintptr_t y, uintptr_t workspace, uintptr_t tables) const {
    py::gil_scoped_release release;
    cuda::run(plan_, device_, stream, pointer<void>(x), {pointer<void>(w), w_type},
              {pointer<void>(parameter), parameter_type}, {pointer<void>(bias), bias_type}, pointer<void>(y),
              pointer<void>(workspace), pointer<void>(tables));
  }

  py::dict facts() const {
    py::dict d = facts_of(plan_.conv, plan_.size, plan_.blocks, plan_.shared, plan_.workspace);
    d["block_chunks"] = plan_.conv.block_chunks;
    return d;
  }

  const char* loader(uintptr_t x) const {
    const DepthwiseParams& p = plan_.conv;
    return name_of(loader_of(pointer<void>(x), p.x_strides, 1, p.channels, p.item));
  }

  int64_t workspace() const { return plan_.workspace; }

 private:
  DepthwisePlan plan_;
  int device_;
};

class BoundDepthwiseGradientPlan {
 public:
  BoundDepthwiseGradientPlan(const RingModel& model, const ConvShape& shape, bool transpose, bool /* exact */,
                             const Ints& x_strides, const Ints& grad_strides, int device,
                             std::optional<std::pair<int, int>> card)
      : plan_(make_depthwise_gradient_plan(shape, model, transpose, five(x_strides), five(grad_strides),
                                           card_of(device, card))),
        device_(device) {}

  py::bytes tables() const { return bytes_of(plan_.tables); }

  void prepare() const { cuda::prepare(plan_, device_); }

  void run(uintptr_t stream, uintptr_t x, uintptr_t grad, uintptr_t w, DType w_type, uintptr_t parameter,
           DType parameter_type, uintptr_t grad_w, uintptr_t grad_parameter, uintptr_t grad_bias, uintptr_t workspace,
           uintptr_t tables) const {
    py::gil_scoped_release release;
    cuda::run(plan_, device_, stream, pointer<void>(x), pointer<void>(grad), {pointer<void>(w), w_type},
              {pointer<void>(parameter), parameter_type},
              {pointer<void>(grad_w), pointer<void>(grad_parameter), pointer<void>(grad_bias)},
              pointer<void>(workspace), pointer<void>(tables));
  }

  py::dict facts() const {
    const DepthwiseGradientParams& p = plan_.conv;
    py::dict d = facts_of(p, plan_.size, plan_.blocks, plan_.shared, plan_.workspace);
    d["splits"] = p.splits;
    d["split_tiles"] = p.split_tiles;
    d["functions"] = p.shells;
    d["sums"] = p.sums;
    d["bias_sums"] = p.bias_sums;
    d["counter"] = p.counter;
    return d;
  }

  int64_t workspace() const { return plan_.workspace; }

 private:
  DepthwiseGradientPlan plan_;
  int device_;
};

}  // namespace

void bind_depthwise(py::module_& m) {
  py::class_<BoundDepthwisePlan>(m, "DepthwisePlan", py::module_local())
      .def(py::init<const RingModel&, const ConvShape&, bool, bool, const Ints&, bool, int,
                    std::optional<std::pair<int, int>>>(),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("channels_last"), py::arg("device"), py::arg("card") = py::none())
      .def("prepare", &BoundDepthwisePlan::prepare)
      .def("run", &BoundDepthwisePlan::run)
      .def("facts", &BoundDepthwisePlan::facts)
      .def("loader", &BoundDepthwisePlan::loader)
      .def_property_readonly("tables", &BoundDepthwisePlan::tables)
      .def_property_readonly("workspace", &BoundDepthwisePlan::workspace);
  py::class_<BoundDepthwiseGradientPlan>(m, "DepthwiseGradientPlan", py::module_local())
      .def(py::init<const RingModel&, const ConvShape&, bool, bool, const Ints&, const Ints&, int,
                    std::optional<std::pair<int, int>>>(),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("grad_strides"), py::arg("device"), py::arg("card") = py::none())
      .def("prepare", &BoundDepthwiseGradientPlan::prepare)
      .def("run", &BoundDepthwiseGradientPlan::run)
      .def("facts", &BoundDepthwiseGradientPlan::facts)
      .def_property_readonly("tables", &BoundDepthwiseGradientPlan::tables)
      .def_property_readonly("workspace", &BoundDepthwiseGradientPlan::workspace);
}

}  // namespace radconv::cuda
