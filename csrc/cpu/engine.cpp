// The driver of the CPU engine: chooses tiles, writes the addition program, folds the weights, and hands tasks to the
// kernels of the best instruction set.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../radconv.h"
#include "prep.h"
#include "thread_pool.h"
#include "tile.h"

namespace radconv::cpu {
namespace {

constexpr int64_t kLargestTile = 512;        // pixels
constexpr int64_t kSmallestTile = 96;        // pixels; below, the halo costs more than the cache saves
constexpr int64_t kTileFloats = 128 * 1024;  // panel and output of a tile stay in a second-level cache
constexpr int64_t kWidestTile = 96;          // columns
constexpr int64_t kPanelRows = 192;          // basis rows of all channels of a panel
constexpr int64_t kWeightRows = 512;         // the same for the weight gradient, where packing the gradient is shared
constexpr int64_t kOutBlock = 256;           // output channels of a task
constexpr int64_t kChannelsPerTask = 16;     // groups are small: several make a task
constexpr int64_t kWeightTasks = 16;         // wanted, so that a few threads finish together
constexpr int64_t kWorkspace = 16 * 1024 * 1024;  // floats: partial sums of the weight gradient
constexpr double kSerialWork = 2e5;               // multiply-adds that are not worth waking a thread for

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  const size_t bytes = static_cast<size_t>(round_up(std::max<int64_t>(floats, 16) * 4, 64));
  void* p = std::aligned_alloc(64, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

struct Isa {
  const Kernels* kernels;
  bool runs;
};

std::vector<Isa> isas() {
  std::vector<Isa> list{{&kernels_baseline, true}};
#if defined(RADCONV_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  list.push_back({&kernels_avx2, avx2});
  list.push_back({&kernels_avx512, avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")});
#endif
  return list;
}

// The best that this machine runs, or the one that RADCONV_CPU_ISA names; an exception when it names none of them.
const Kernels& kernels() {
  static const Kernels* chosen = [] {
    const char* wanted = std::getenv("RADCONV_CPU_ISA");
    const Kernels* best = nullptr;
    for (const Isa& isa : isas()) {
      if (!isa.runs) continue;
      if (wanted != nullptr && std::strcmp(wanted, isa.kernels->name) == 0) return isa.kernels;
      best = isa.kernels;
    }
    if (wanted != nullptr && *wanted != '\0')
      throw std::invalid_argument(std::string("RADCONV_CPU_ISA: expected an instruction set that was built and that ") +
                                  "this machine runs, got '" + wanted + "'");
    return best;
  }();
  return *chosen;
}

int64_t balanced(int64_t size, int64_t largest) {
  return ceil_div(size, ceil_div(size, std::max<int64_t>(largest, 1)));
}

// `pixels` is the most that a tile may have.
TileShape tile_shape(const ConvShape& shape, int64_t pixels) {
  const Axis* a = shape.axis;
  const Kernels& k = kernels();
  TileShape t;
  const bool one_line = a[0].out * a[1].out == 1;
  t.out[2] = balanced(a[2].out, one_line ? pixels : std::min(pixels, kWidestTile));
  const int64_t lines = std::max<int64_t>(pixels / t.out[2], 1);
  const int64_t high = a[0].out == 1 ? lines : static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(lines))));
  t.out[1] = balanced(a[1].out, std::min(high, a[1].out));
  t.out[0] = balanced(a[0].out, std::max<int64_t>(lines / t.out[1], 1));
  for (int i = 0; i < 3; ++i) {
    t.count[i] = ceil_div(a[i].out, t.out[i]);
    t.halo[i] = (t.out[i] - 1) * a[i].stride + (a[i].kernel - 1) * a[i].dilation + 1;
  }
  t.phase_pitch = ceil_div(t.halo[2], a[2].stride);
  t.row_pitch = t.phase_pitch * a[2].stride;
  t.sum_pitch = round_up(t.out[2], k.lanes);
  t.sum_plane = t.halo[0] * t.halo[1] * t.sum_pitch;
  t.pitch = round_up(t.out[0] * t.out[1] * t.out[2], k.strip);
  return t;
}

// The pixels of one tile, so that panel and output fit the cache and a small problem still has tasks to share.
int64_t tile_pixels(const ConvShape& shape, int64_t rows_in_cache) {
  const int64_t by_cache = kTileFloats / std::max<int64_t>(rows_in_cache, 1);
  const int64_t image = shape.axis[0].out * shape.axis[1].out * shape.axis[2].out;
  const int64_t by_tasks = ceil_div(image * std::max<int64_t>(shape.batch, 1), 8);
  return std::max(kSmallestTile, std::min({kLargestTile, by_cache, by_tasks}));
}

// Everything that a call points to.
struct Program {
  std::vector<int64_t> pair_low, pair_high, begin, row;

  Program(const ConvShape& shape, const RingModel& model, const TileShape& tile) {
    const Axis* a = shape.axis;
    const int64_t width = a[2].kernel;
    for (int64_t j = 0; j < (width + 1) / 2; ++j) {
      pair_low.push_back(column(a[2], tile, j));
      pair_high.push_back(column(a[2], tile, width - 1 - j));
    }
    std::vector<std::vector<int64_t>> rows(static_cast<size_t>(model.buckets));
    for (int64_t z = 0; z < a[0].kernel; ++z)
      for (int64_t y = 0; y < a[1].kernel; ++y)
        for (size_t j = 0; j < pair_low.size(); ++j) {
          const int b = model.bucket[static_cast<size_t>((z * a[1].kernel + y) * width) + j];
          if (b < 0) continue;
          const int64_t line = z * a[0].dilation * tile.halo[1] + y * a[1].dilation;
          rows[static_cast<size_t>(b)].push_back(static_cast<int64_t>(j) * tile.sum_plane + line * tile.sum_pitch);
        }
    begin.push_back(0);
    for (const auto& r : rows) {
      row.insert(row.end(), r.begin(), r.end());
      begin.push_back(static_cast<int64_t>(row.size()));
    }
  }

  AddProgram view() const {
    return {static_cast<int>(pair_low.size()),  pair_low.data(), pair_high.data(),
            static_cast<int>(begin.size()) - 1, begin.data(),    row.data()};
  }

 private:
  static int64_t column(const Axis& axis, const TileShape& tile, int64_t tap) {
    const int64_t h = tap * axis.dilation;
    return h % axis.stride * tile.phase_pitch + h / axis.stride;
  }
};

void describe_input(Call& call, const ConvShape& shape, const TileShape& tile, const Program& program, const void* x,
                    const Strides& strides) {
  call.shape = shape;
  call.tile = tile;
  call.add = program.view();
  call.x = x;
  call.xs = strides;
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
  bool nonfinite = false;
  ConvCall call;
  Buffer basis, mix;
  int64_t chunk = 1, rows = shape.out_per_group;
  if (depthwise) {
    call.basis_stride = packed_size(rows, model.buckets, k.rows);
    basis = allocate(shape.groups * call.basis_stride);
    fold_weights(view, profile.value, model.buckets, k.rows, basis.get(), threads);
  } else {
    const Factors factors = factorise(model, profile.value);
    rows = factors.rows;
    chunk = std::max<int64_t>(1, std::min(shape.in_per_group, kPanelRows / rows));
    call.basis_stride = 0;
    basis = allocate(packed_size(rows, model.buckets, k.rows));
    pack_rows(factors.basis, rows, model.buckets, k.rows, basis.get());
    mix = allocate(shape.groups * packed_size(shape.out_per_group, shape.in_per_group * rows, k.rows));
    fold_weights(view, factors.mix, rows, k.rows, mix.get(), threads);
  }
  call.out_block = depthwise ? shape.out_per_group : std::min(round_up(shape.out_per_group, k.rows), kOutBlock);
  const TileShape tile = tile_shape(shape, tile_pixels(shape, chunk * rows + call.out_block));
  const Program program(shape, model, tile);
  describe_input(call, shape, tile, program, x, x_strides);
  call.rows = static_cast<int>(rows);
  call.basis = basis.get();
  call.chunk = chunk;
  call.nonfinite = &nonfinite;
  call.mix = mix.get();
  call.bias = bias;
  call.y = y;
  call.ys = y_strides;
  call.out_blocks = ceil_div(shape.out_per_group, call.out_block);
  call.groups_per_task = std::max<int64_t>(1, std::min(shape.groups, kChannelsPerTask / shape.in_per_group));
  call.group_tasks = ceil_div(shape.groups, call.groups_per_task);
  const int64_t tasks =
      shape.batch * tile.count[0] * tile.count[1] * tile.count[2] * call.group_tasks * call.out_blocks;
  parallel_for(tasks, threads_for(shape, rows, threads), [&](int64_t task) { k.conv_task(call, task); });
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
  bool nonfinite = false;
  WeightCall call;
  const Buffer basis = allocate(packed_size(rows, model.buckets, k.rows));
  pack_rows(gradient.basis, rows, model.buckets, k.rows, basis.get());
  call.chunk = std::max<int64_t>(1, std::min(shape.in_per_group, kWeightRows / rows));
  call.chunk = balanced(shape.in_per_group, call.chunk);
  call.chunks = ceil_div(shape.in_per_group, call.chunk);
  call.grad_block = std::min(round_up(shape.out_per_group, k.strip), round_up(kOutBlock, k.strip));
  const TileShape tile = tile_shape(shape, tile_pixels(shape, call.chunk * rows + call.grad_block));
  const Program program(shape, model, tile);
  const int64_t tiles = shape.batch * tile.count[0] * tile.count[1] * tile.count[2];
  call.out_pitch = round_up(shape.out_per_group, k.lanes);
  const int64_t sums_size = shape.groups * shape.in_per_group * rows * call.out_pitch;
  call.splits = std::max<int64_t>(1, std::min({ceil_div(kWeightTasks, call.chunks * shape.groups), tiles,
                                               kWorkspace / std::max<int64_t>(sums_size, 1)}));
  const Buffer sums = allocate(call.splits * sums_size);
  std::memset(sums.get(), 0, static_cast<size_t>(call.splits * sums_size) * sizeof(float));
  describe_input(call, shape, tile, program, x, x_strides);
  call.rows = static_cast<int>(rows);
  call.basis = basis.get();
  call.basis_stride = 0;
  call.nonfinite = &nonfinite;
  call.grad = grad;
  call.gs = grad_strides;
  call.sums = sums.get();
  parallel_for(call.splits * shape.groups * call.chunks, threads_for(shape, rows, threads),
               [&](int64_t task) { k.weight_task(call, task); });
  if (nonfinite) return false;
  for (int64_t s = 1; s < call.splits; ++s)
    for (int64_t i = 0; i < sums_size; ++i)
      sums[static_cast<size_t>(i)] += sums[static_cast<size_t>(s * sums_size + i)];
  if (!all_finite(sums.get(), sums_size)) return false;
  const WeightView view{w, transpose, shape.groups, shape.in_per_group, shape.out_per_group, model.rings};
  finish_gradients(view, model, gradient, sums.get(), call.out_pitch, grad_w, grad_parameter, threads);
  return true;
}

std::vector<const char*> available_isas() {
  std::vector<const char*> names;
  for (const Isa& isa : isas())
    if (isa.runs) names.push_back(isa.kernels->name);
  return names;
}

const char* current_isa() { return kernels().name; }

}  // namespace radconv::cpu
