#include "cuda/bindings.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/depthwise_engine.h"
#include "cuda/engine.h"
#include "module.h"

namespace py = pybind11;

namespace radconv::cuda {
namespace {

// One direction of a checked convolution, its layouts and its device; made once per problem and kept by Python.
template <class P>
struct Bound {
  P plan;
  int device;
};

// For reports and tests: shared memory and number of multiprocessors, whatever the device has.
using GivenCard = std::optional<std::pair<int, int>>;

Card card_of(int device, const GivenCard& given) { return given ? Card{given->first, given->second} : card(device); }

// ---- what was decided, for tests and reports ------------------------------------------------------------------------

template <class P>
py::dict common_facts(const P& plan, const Geometry& g) {
  py::dict d;
  d["kernel"] = py::make_tuple(plan.size.k, plan.size.depth);
  d["blocks"] = plan.blocks;
  d["shared"] = plan.shared;
  d["workspace"] = plan.workspace;
  d["tile"] = py::make_tuple(g.tile[0], g.tile[1], g.tile[2]);
  d["tiles"] = py::make_tuple(g.tiles[0], g.tiles[1], g.tiles[2]);
  d["classes"] = py::make_tuple(g.classes[0], g.classes[1], g.classes[2]);
  return d;
}

py::dict facts_of(const Plan& plan) {
  const ConvParams& p = plan.conv;
  py::dict d = common_facts(plan, p);
  d["halo_buffers"] = p.halo_buffers;
  d["weight_buffers"] = p.weight_buffers;
  d["block_outputs"] = p.block_outputs;
  d["passes"] = p.passes;
  d["merged"] = plan.prep.merged;
  d["clocks"] = plan.clocks;
  d["dense_clocks"] = plan.dense_clocks;
  return d;
}

py::dict facts_of(const GradientPlan& plan) {
  const GradientParams& p = plan.gradient;
  py::dict d = common_facts(plan, p);
  d["splits"] = p.splits;
  d["pixel_splits"] = 1 << p.pixel_split_bits;
  d["block_outputs"] = p.block_outputs;
  d["chunk_blocks"] = p.chunk_blocks;
  d["passes"] = p.passes;
  d["merged"] = plan.finish.params.merged;
  return d;
}

py::dict facts_of(const DepthwisePlan& plan) {
  py::dict d = common_facts(plan, plan.conv);
  d["halo_buffers"] = plan.conv.buffers;
  d["block_chunks"] = plan.conv.block_chunks;
  return d;
}

py::dict facts_of(const DepthwiseGradientPlan& plan) {
  const DepthwiseGradientParams& p = plan.conv;
  py::dict d = common_facts(plan, p);
  d["halo_buffers"] = p.buffers;
  d["splits"] = p.splits;
  d["split_tiles"] = p.split_tiles;
  d["functions"] = p.shells;
  d["sums"] = p.sums;
  d["bias_sums"] = p.bias_sums;
  d["counter"] = p.counter;
  return d;
}

// ---- plans ----------------------------------------------------------------------------------------------------------

template <class P>
py::class_<Bound<P>> bind_plan(py::module_& m, const char* name) {
  return py::class_<Bound<P>>(m, name, py::module_local())
      .def("prepare", [](const Bound<P>& b) { prepare(b.plan, b.device); })
      .def("facts", [](const Bound<P>& b) { return facts_of(b.plan); })
      .def_property_readonly("tables",
                             [](const Bound<P>& b) {
                               const std::vector<int32_t>& ints = b.plan.tables;
                               return py::bytes(reinterpret_cast<const char*>(ints.data()), 4 * ints.size());
                             })
      .def_property_readonly("workspace", [](const Bound<P>& b) { return b.plan.workspace; });
}

// A convolution: forward, or the gradient by the input.
template <class P,
          P (*kMake)(const ConvShape&, const RingModel&, bool, bool, const Strides&, const Strides&, const Card&)>
void bind_conv(py::module_& m, const char* name) {
  bind_plan<P>(m, name)
      .def(py::init([](const RingModel& model, const ConvShape& shape, bool transpose, bool exact,
                       const Ints& x_strides, bool channels_last, int device, const GivenCard& card) {
             return Bound<P>{kMake(shape, model, transpose, exact, five(x_strides),
                                   output_strides(shape, channels_last), card_of(device, card)),
                             device};
           }),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("channels_last"), py::arg("device"), py::arg("card") = py::none())
      .def("run",
           [](const Bound<P>& b, uintptr_t stream, uintptr_t x, uintptr_t w, DType w_type, uintptr_t parameter,
              DType parameter_type, uintptr_t bias, DType bias_type, uintptr_t y, uintptr_t workspace,
              uintptr_t tables) {
             py::gil_scoped_release release;
             run(b.plan, b.device, stream, pointer<void>(x), {pointer<void>(w), w_type},
                 {pointer<void>(parameter), parameter_type}, {pointer<void>(bias), bias_type}, pointer<void>(y),
                 pointer<void>(workspace), pointer<void>(tables));
           })
      .def("loader", [](const Bound<P>& b, uintptr_t x) {
        constexpr const char* kNames[] = {"vector", "word", "scalar"};
        const auto& p = b.plan.conv;
        return kNames[static_cast<int>(loader_of(pointer<void>(x), p.x_strides, p.groups, p.channels, p.item))];
      });
}

// The gradients by weights, parameter and bias.
template <class P,
          P (*kMake)(const ConvShape&, const RingModel&, bool, bool, const Strides&, const Strides&, const Card&)>
void bind_gradient(py::module_& m, const char* name) {
  bind_plan<P>(m, name)
      .def(py::init([](const RingModel& model, const ConvShape& shape, bool transpose, bool exact,
                       const Ints& x_strides, const Ints& grad_strides, int device, const GivenCard& card) {
             return Bound<P>{
                 kMake(shape, model, transpose, exact, five(x_strides), five(grad_strides), card_of(device, card)),
                 device};
           }),
           py::kw_only(), py::arg("model"), py::arg("shape"), py::arg("transpose"), py::arg("exact"),
           py::arg("x_strides"), py::arg("grad_strides"), py::arg("device"), py::arg("card") = py::none())
      .def("run", [](const Bound<P>& b, uintptr_t stream, uintptr_t x, uintptr_t grad, uintptr_t w, DType w_type,
                     uintptr_t parameter, DType parameter_type, uintptr_t grad_w, uintptr_t grad_parameter,
                     uintptr_t grad_bias, uintptr_t workspace, uintptr_t tables) {
        py::gil_scoped_release release;
        run(b.plan, b.device, stream, pointer<void>(x), pointer<void>(grad), {pointer<void>(w), w_type},
            {pointer<void>(parameter), parameter_type},
            {pointer<void>(grad_w), pointer<void>(grad_parameter), pointer<void>(grad_bias)}, pointer<void>(workspace),
            pointer<void>(tables));
      });
}

}  // namespace

void bind(py::module_& m) {
  // a ValueError says why the kernels can't do it, a RuntimeError what the CUDA runtime refused
  py::register_local_exception<Unservable>(m, "Unservable", PyExc_ValueError);
  bind_conv<Plan, make_plan>(m, "CudaPlan");
  bind_gradient<GradientPlan, make_gradient_plan>(m, "CudaGradientPlan");
  bind_conv<DepthwisePlan, make_depthwise_plan>(m, "DepthwisePlan");
  bind_gradient<DepthwiseGradientPlan, make_depthwise_gradient_plan>(m, "DepthwiseGradientPlan");
  m.def("why_not_device", &why_not);
}

}  // namespace radconv::cuda
