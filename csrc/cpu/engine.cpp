// The driver of the CPU engine: from a problem to tasks of the instruction set's kernels.

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "../radconv.h"
#include "isa.h"
#include "prep.h"
#include "thread_pool.h"
#include "tiles.h"

namespace radconv::cpu {
namespace {

constexpr int64_t kFew = 12;            // outputs or columns, so few that AMX tiles of float32 gain nothing
constexpr int64_t kPanelColumns = 192;  // of all channels of a panel
constexpr int64_t kWeightRows = 512;    // the same for the weight gradient, where packing the gradient is shared
constexpr int64_t kOutBlock = 576;      // output channels of a task, whole blocks of any product
constexpr int64_t kLargestCached = 8 * 1024 * 1024;  // bytes of an output; beyond, it is stored past the caches
constexpr int64_t kChannelsPerTask = 16;             // groups are small: several make a task
constexpr int64_t kWorkspace = 16 * 1024 * 1024;     // floats: partial sums of the weight gradient
constexpr double kSerialWork = 2e5;                  // multiply-adds that are not worth waking a thread for,
constexpr int64_t kSerialFold = 60000;               // or of folding weights, and of gradients from sums

void describe_input(Call& call, const ConvShape& shape, const TileShape& tile, const Program& program, const void* x,
                    const Strides& strides) {
  call.shape = shape;
  call.tile = tile;
  call.add = program.view();
  call.x = x;
  call.xs = strides;
  call.line_strides = strides;
  call.turned = tile.unit > 1 && lane_group(strides, tile.unit) == 1;
  if (call.turned) {
    const Axis* a = shape.axis;
    const int64_t line = a[2].in * tile.unit;
    call.line_strides = {{0, 1, a[1].in * line, line, tile.unit}};
  }
}

Buffer fold_weights(const WeightView& view, const Matrix& matrix, int64_t m, const MixLayout& layout, int threads) {
  const int64_t tasks = view.groups * layout.blocks(view.out_per_group);
  Buffer folded = allocate(tasks * layout.block_bytes(layout.columns(view.in_per_group, m)) / 4);
  FoldCall call{view, nullptr, m, layout, folded.get()};
  Matrix padded(static_cast<size_t>(view.rings * call.pitch()), 0.0);
  for (int64_t i = 0; i < view.rings; ++i) std::copy_n(matrix.begin() + i * m, m, padded.begin() + i * call.pitch());
  call.matrix = padded.data();
  const int64_t work = view.groups * view.out_per_group * view.in_per_group * m * view.rings;
  parallel_for(tasks, work < kSerialFold ? 1 : threads, [&](int64_t task) { kernels().fold_task(call, task); });
  return folded;
}

// Buckets of the taps of a kernel's first corner, its centre lines among them; none where depthwise.h doesn't serve.
std::vector<int> depthwise_corner(const ConvShape& shape, const RingModel& model) {
  constexpr int64_t kLargest = 15;
  const Axis* a = shape.axis;
  const int64_t k = a[2].kernel;
  const bool plain = a[1].stride * a[1].dilation * a[2].stride * a[2].dilation == 1;
  if (shape.out_per_group != 1 || a[0].kernel != 1 || a[1].kernel != k || k % 2 == 0 || k < 3 || k > kLargest || !plain)
    return {};
  std::vector<int> corner;
  for (int64_t y = 0; y < (k + 1) / 2; ++y)
    for (int64_t x = 0; x < (k + 1) / 2; ++x) corner.push_back(model.bucket[static_cast<size_t>(y * k + x)]);
  return corner;
}

// Basis functions for all channels; none where they are the buckets themselves.
Buffer shared_basis(Call& call, const Matrix& basis, int64_t rows, int buckets) {
  call.rows = rows;
  call.block = balanced(rows, kernels().rows);
  call.basis = nullptr;
  call.basis_stride = 0;
  if (basis.empty()) return nullptr;
  Buffer packed = allocate(packed_size(rows, buckets, call.block));
  pack_rows(basis, rows, buckets, call.block, packed.get());
  call.basis = packed.get();
  return packed;
}

bool all_finite(const float* p, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t u;
    std::memcpy(&u, p + i, sizeof u);
    largest = std::max(largest, u & 0x7fffffffu);
  }
  return largest < 0x7f800000u;
}

int64_t parameter_size(const RingModel& model) {
  switch (model.family) {
    case Family::kIdentity:
      return 0;
    case Family::kCustom:
      return static_cast<int64_t>(model.rings) * model.buckets;
    default:
      return model.rings;
  }
}

bool weights_finite(const ConvShape& shape, const RingModel& model, const float* w, const float* parameter) {
  return all_finite(w, shape.groups * shape.out_per_group * shape.in_per_group * model.rings) &&
         all_finite(parameter, parameter_size(model));
}

int64_t out_pixels(const ConvShape& shape) {
  return shape.batch * shape.axis[0].out * shape.axis[1].out * shape.axis[2].out;
}

// sums[0] += all the other splits, in order.
void add_up(float* sums, int64_t size, int64_t splits, int threads) {
  constexpr int64_t kRun = 16 * 1024;
  parallel_for(ceil_div(size, kRun), splits == 1 ? 1 : threads, [&](int64_t run) {
    float* to = sums + run * kRun;
    const int64_t count = std::min(kRun, size - run * kRun);
    for (int64_t s = 1; s < splits; ++s)
      for (int64_t i = 0; i < count; ++i) to[i] += to[s * size + i];
  });
}

int threads_for(const ConvShape& shape, int64_t rows, int threads) {
  const double work = static_cast<double>(out_pixels(shape)) * static_cast<double>(shape.groups * shape.in_per_group) *
                      static_cast<double>(rows * (shape.out_per_group + 16));
  return work < kSerialWork ? 1 : threads;
}

}  // namespace

float* scratch(int64_t floats) {
  thread_local Buffer buffer;
  thread_local int64_t capacity = 0;
  if (capacity < floats) {
    buffer = allocate(floats);
    std::memset(buffer.get(), 0, static_cast<size_t>(floats) * sizeof(float));
    capacity = floats;
  }
  return buffer.get();
}

bool conv(const ConvShape& shape, const RingModel& model, bool transpose, const void* x, const Strides& x_strides,
          const float* w, const float* parameter, const float* bias, void* y, const Strides& y_strides, int threads) {
  if (!weights_finite(shape, model, w, parameter)) return false;
  const Kernels& k = kernels();
  const Profile profile = profile_of(model, parameter);
  const WeightView view{w, transpose, shape.groups, shape.in_per_group, shape.out_per_group, model.rings};
  const bool depthwise = shape.in_per_group == 1;
  const int64_t outputs = shape.out_per_group;
  const int64_t unit = !depthwise     ? lane_group(x_strides, shape.in_per_group)
                       : outputs == 1 ? depthwise_lanes(shape, x_strides)
                                      : 1;
  const std::vector<Sum> sums = needed_sums(shape, model);
  bool nonfinite = false;
  ConvCall call;
  Buffer basis, mix;
  int64_t panel_bytes = 0;
  call.mix = nullptr;
  call.product = Product::kFma;
  call.corner = nullptr;
  std::vector<int> corner;
  if (depthwise) {
    corner = depthwise_corner(shape, model);
    if (!corner.empty()) call.corner = corner.data();
    // with lanes as channels, the groups are the outputs of one group
    const WeightView lanes{w, transpose, 1, 1, shape.groups, model.rings};
    call.rows = outputs;
    call.block = balanced(outputs, k.rows);
    const MixLayout layout{MixLayout::Kind::kFloats, 1, unit > 1 ? unit : call.block, 1, false};
    basis = fold_weights(unit > 1 ? lanes : view, profile.value, model.buckets, layout, threads);
    call.basis = basis.get();
    call.basis_stride = packed_size(unit > 1 ? unit : outputs, model.buckets, layout.block);
    call.chunk = 1;
    call.out_block = outputs;
  } else {
    const Factors factors = factorise(model, profile.value);
    basis = shared_basis(call, factors.basis, factors.rows, model.buckets);
    const bool few = std::min(outputs, shape.in_per_group * factors.rows) <= kFew;
    const Product product = shape.dtype == DType::kBFloat16 ? k.bfloat16 : few ? Product::kFma : k.float32;
    call.product = product;
    MixLayout& layout = call.layout;
    layout.unit = unit;
    layout.kind = product == Product::kTile   ? MixLayout::Kind::kTiles
                  : product == Product::kPair ? MixLayout::Kind::kPairs
                                              : MixLayout::Kind::kFloats;
    layout.block = product == Product::kTile ? kTileRows : unit > 1 ? k.strip : k.rows;
    layout.parts = product == Product::kTile && shape.dtype == DType::kFloat32 ? 3 : 1;
    layout.output_lanes = unit > 1;
    // whole pairs of lane groups, and of tiles of columns
    const int64_t step = 2 * unit * (layout.pairs() ? kTileRows / std::gcd(kTileRows, factors.rows * unit) : 1);
    // tiles need no more to run at their rate, and leave room for more pixels
    const int64_t chunk = product == Product::kTile ? step : (layout.pairs() ? 2 : 1) * kPanelColumns / factors.rows;
    call.chunk = std::min(std::max(step, chunk / step * step), shape.in_per_group);
    panel_bytes = layout.columns(call.chunk, factors.rows) * 4 * layout.parts + 2 * factors.rows * unit * 4;
    mix = fold_weights(view, factors.mix, factors.rows, layout, threads);
    call.mix = mix.get();
    call.out_block = round_up(ceil_div(outputs, ceil_div(outputs, kOutBlock)), kWholeStrips);
  }
  call.out_blocks = ceil_div(outputs, call.out_block);
  const int64_t lane_groups = depthwise ? ceil_div(shape.groups, unit) : shape.groups;
  call.groups_per_task =
      std::max<int64_t>(1, std::min(lane_groups, kChannelsPerTask / (depthwise ? unit : shape.in_per_group)));
  call.group_tasks = ceil_div(lane_groups, call.groups_per_task);
  const int64_t pixels =
      tile_pixels(shape, panel_bytes + 4 * std::min(call.out_block, outputs) * (depthwise ? 2 * unit : 1),
                  call.group_tasks * call.out_blocks);
  const TileShape tile = tile_shape(shape, sums, unit, false, pixels);
  const Program program(shape, model, sums, tile);
  describe_input(call, shape, tile, program, x, x_strides);
  call.nonfinite = &nonfinite;
  call.bias = bias;
  call.y = y;
  call.ys = y_strides;
  call.past_caches = out_pixels(shape) * shape.groups * outputs * 4 > kLargestCached;
  const int64_t tasks = tile.tiles(shape.batch) * call.group_tasks * call.out_blocks;
  parallel_for(tasks, threads_for(shape, call.rows, threads), [&](int64_t task) { k.conv_task(call, task); });
  return !nonfinite;
}

bool weight_gradient(const ConvShape& shape, const RingModel& model, bool transpose, const void* x,
                     const Strides& x_strides, const void* grad, const Strides& grad_strides, const float* w,
                     const float* parameter, float* grad_w, float* grad_parameter, int threads) {
  if (!weights_finite(shape, model, w, parameter)) return false;
  const Kernels& k = kernels();
  const Profile profile = profile_of(model, parameter);
  const GradientBasis gradient = gradient_basis(model, profile, grad_parameter != nullptr);
  const int64_t rows = gradient.rows;
  const bool depthwise = shape.in_per_group == 1 && shape.out_per_group == 1;
  const int64_t unit = depthwise ? depthwise_lanes(shape, x_strides) : lane_group(x_strides, shape.in_per_group);
  const bool by_lane = depthwise && unit > 1;  // then the groups are channels with an output each
  const bool few = std::min(shape.in_per_group * rows, shape.out_per_group) <= kFew;
  const bool tiles = k.float32 == Product::kTile && !few;
  const WeightView view =
      by_lane ? WeightView{w, transpose, 1, shape.groups, 1, model.rings}
              : WeightView{w, transpose, shape.groups, shape.in_per_group, shape.out_per_group, model.rings};
  const std::vector<Sum> sums = needed_sums(shape, model);
  bool nonfinite = false;
  WeightCall call;
  call.product = few ? Product::kFma : k.float32;
  const Buffer basis = shared_basis(call, gradient.basis, rows, model.buckets);
  const int64_t step = by_lane ? unit : std::max<int64_t>(unit, 16);
  call.chunk = std::min(std::max(step, by_lane ? step : kWeightRows / rows / step * step), view.in_per_group);
  call.chunk = std::min(round_up(balanced(view.in_per_group, call.chunk), step), view.in_per_group);
  call.chunks = ceil_div(view.in_per_group, call.chunk);
  call.grad_block = std::min(round_up(view.out_per_group, kWholeStrips), kOutBlock);
  const int64_t columns = round_up(view.in_per_group, unit) * rows;  // all channels
  const int64_t padded = round_up(view.out_per_group, 16);
  call.layout = {unit, rows, padded, 1, round_up(columns, 16) * padded};
  if (by_lane)
    call.layout = {unit, rows, 1, 1, columns};
  else if (tiles && unit > 1)
    call.layout = {unit, rows, 1, columns, columns * padded};
  const int64_t chunk_bytes = call.chunk * rows * 4 + std::min(call.grad_block, padded) * 4;
  const int64_t pixels = tile_pixels(shape,
                                     by_lane ? (rows + 2) * unit * 4
                                     : tiles ? chunk_bytes * 3 / 2
                                             : chunk_bytes,
                                     call.chunks * view.groups);
  const TileShape tile = tile_shape(shape, sums, unit, tiles && unit > 1, pixels);
  const Program program(shape, model, sums, tile);
  const int64_t count = tile.tiles(shape.batch);
  const int64_t sums_size = view.groups * call.layout.group;
  call.splits = std::max<int64_t>(
      1, std::min({ceil_div(kTasks, call.chunks * view.groups), count, kWorkspace / std::max<int64_t>(sums_size, 1)}));
  const Buffer total = allocate(call.splits * sums_size);
  describe_input(call, shape, tile, program, x, x_strides);
  call.nonfinite = &nonfinite;
  call.grad = grad;
  call.gs = grad_strides;
  call.sums = total.get();
  const int workers = threads_for(shape, rows, threads);
  parallel_for(call.splits, workers, [&](int64_t split) {
    std::memset(call.sums + split * sums_size, 0, static_cast<size_t>(sums_size) * sizeof(float));
  });
  parallel_for(call.splits * view.groups * call.chunks, workers, [&](int64_t task) { k.weight_task(call, task); });
  if (nonfinite) return false;
  add_up(total.get(), sums_size, call.splits, workers);
  if (!all_finite(total.get(), sums_size)) return false;
  const std::vector<float> to_w(gradient.to_w.begin(), gradient.to_w.end());
  // what the parameter's gradient needs of w^T S: all of it, or where a ring's value depends on its sigma
  std::vector<int64_t> ring, function;
  const bool custom = model.family == Family::kCustom;
  for (int64_t i = 0; grad_parameter != nullptr && i < model.rings; ++i)
    for (int64_t j = 0; j < rows; ++j)
      if (custom || gradient.to_parameter[static_cast<size_t>(i * rows + j)] != 0) {
        ring.push_back(i);
        function.push_back(j);
      }
  const int64_t parameters = static_cast<int64_t>(ring.size());
  FinishCall finish;
  finish.view = view;
  finish.sums = total.get();
  finish.layout = call.layout;
  finish.to_w = grad_w == nullptr ? nullptr : to_w.data();
  finish.grad_w = grad_w;
  finish.parameters = parameters;
  finish.ring = ring.data();
  finish.function = function.data();
  const int64_t tasks = finish.tasks(k.lanes);
  Matrix partial(static_cast<size_t>(tasks * parameters), 0.0);
  finish.partial = partial.data();
  const int64_t work = view.groups * view.in_per_group * view.out_per_group * rows * view.rings;
  parallel_for(tasks, work < kSerialFold ? 1 : threads, [&](int64_t task) { k.finish_task(finish, task); });
  if (grad_parameter == nullptr) return true;
  Matrix gradients(static_cast<size_t>(parameter_size(model)), 0.0);
  for (int64_t p = 0; p < parameters; ++p) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += partial[static_cast<size_t>(task * parameters + p)];
    const int64_t i = ring[static_cast<size_t>(p)], at = i * rows + function[static_cast<size_t>(p)];
    if (custom)
      gradients[static_cast<size_t>(at)] = sum;
    else
      gradients[static_cast<size_t>(i)] += gradient.to_parameter[static_cast<size_t>(at)] * sum;
  }
  std::copy(gradients.begin(), gradients.end(), grad_parameter);
  return true;
}

}  // namespace radconv::cpu
