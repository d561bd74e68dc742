#include "cuda/bindings.h"

#include <optional>
#include <string>

#include "cuda/engine.h"
#include "module.h"

namespace py = pybind11;

namespace radconv::cuda {
namespace {

// One checked convolution, its layouts and its device; made once per problem and kept by Python.
class CudaPlan {
 public:
  CudaPlan(const RingModel& model, const ConvShape& shape, bool transpose, bool exact, const Ints& x_strides,
           bool channels_last, int device, std::optional<std::pair<int, int>> card)
      : plan_(make_plan(shape, model, transpose, exact, five(x_strides), output_strides(shape, channels_last),
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

  // What was decided, for tests and reports.
  py::dict facts() const {
    const ConvParams& p = plan_.conv;
    py::dict d;
    d["kernel"] = py::make_tuple(plan_.size.k, plan_.size.depth);
    d["blocks"] = plan_.blocks;
    d["shared"] = plan_.shared;
    d["workspace"] = plan_.workspace;
    d["tile"] = py::make_tuple(p.tile[0], p.tile[1], p.tile[2]);
    d["tiles"] = py::make_tuple(p.tiles[0], p.tiles[1], p.tiles[2]);
    d["classes"] = py::make_tuple(p.classes[0], p.classes[1], p.classes[2]);
    d["halo_buffers"] = p.halo_buffers;
    d["weight_buffers"] = p.weight_buffers;
    d["block_outputs"] = p.block_outputs;
    d["passes"] = p.passes;
    d["merged"] = plan_.prep.merged;
    d["clocks"] = plan_.clocks;
    d["dense_clocks"] = plan_.dense_clocks;
    return d;
  }

  const char* loader(uintptr_t x) const {
    const ConvParams& p = plan_.conv;
    return name_of(loader_of(pointer<void>(x), p.x_strides, p.groups, p.channels, p.item));
  }

  int64_t workspace() const { return plan_.workspace; }

 private:
  Plan plan_;
  int device_;
};

// The weight gradient of one checked convolution.
class CudaGradientPlan {
 public:
  CudaGradientPlan(const RingModel& model, const ConvShape& shape, bool transpose, bool exact, const Ints& x_strides,
                   const Ints& grad_strides, int device, std::optional<std::pair<int, int>> card)
      : plan_(make_gradient_plan(shape, model, transpose, exact, five(x_strides), five(grad_strides),
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
    const GradientParams& p = plan_.gradient;
    py::dict d;
    d["kernel"] = py::make_tuple(plan_.size.k, plan_.size.depth);
    d["blocks"] = plan_.blocks;
    d["shared"] = plan_.shared;
    d["workspace"] = plan_.workspace;
    d["tile"] = py::make_tuple(p.tile[0], p.tile[1], p.tile[2]);
    d["tiles"] = p.all_tiles;
    d["splits"] = p.splits;
    d["pixel_splits"] = p.pixel_splits;
    d["block_outputs"] = p.block_outputs;
    d["chunk_blocks"] = p.chunk_blocks;
    d["passes"] = p.passes;
    d["merged"] = plan_.finish.params.merged;
    return d;
  }

  int64_t workspace() const { return plan_.workspace; }

 private:
  GradientPlan plan_;
  int device_;
};

}  // namespace

void bind(py::module_& m) {
  // a ValueError says why the kernels can't do it, a RuntimeError what the CUDA runtime refused
  py::register_local_exception<Unservable>(m, "Unservable", PyExc_ValueError);
  py::class_<CudaPlan>(m, "CudaPlan", py::module_local())
      .def(py::init<const RingModel&, const ConvShape&, bool, bool, const Ints&, bool, int,
                    std::optional<std::pair<int, int>>>(),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("channels_last"), py::arg("device"), py::arg("card") = py::none())
      .def("prepare", &CudaPlan::prepare)
      .def("run", &CudaPlan::run)
      .def("facts", &CudaPlan::facts)
      .def("loader", &CudaPlan::loader)
      .def_property_readonly("tables", &CudaPlan::tables)
      .def_property_readonly("workspace", &CudaPlan::workspace);
  py::class_<CudaGradientPlan>(m, "CudaGradientPlan", py::module_local())
      .def(py::init<const RingModel&, const ConvShape&, bool, bool, const Ints&, const Ints&, int,
                    std::optional<std::pair<int, int>>>(),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("grad_strides"), py::arg("device"), py::arg("card") = py::none())
      .def("prepare", &CudaGradientPlan::prepare)
      .def("run", &CudaGradientPlan::run)
      .def("facts", &CudaGradientPlan::facts)
      .def_property_readonly("tables", &CudaGradientPlan::tables)
      .def_property_readonly("workspace", &CudaGradientPlan::workspace);
  m.def("why_not_device", &why_not);
  bind_depthwise(m);
}

}  // namespace radconv::cuda
