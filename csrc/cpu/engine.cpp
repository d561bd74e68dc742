// The driver of the CPU engine: chooses tiles, writes the addition program, folds the weights, and hands tasks to the
// kernels of the best instruction set.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(RADCONV_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../radconv.h"
#include "prep.h"
#include "thread_pool.h"
#include "tile.h"

namespace radconv::cpu {
namespace {

constexpr int64_t kLargestTile = 4096;       // pixels
constexpr int64_t kSmallestTile = 96;        // pixels; below, the halo costs more than the cache saves
constexpr int64_t kCacheBytes = 768 * 1024;  // panel and output of a tile stay in a second-level cache
constexpr int64_t kRingFloats = 6 * 1024;    // rows of pair sums stay in a first-level cache
constexpr int64_t kWidestTile = 96;          // columns
constexpr int64_t kPanelColumns = 192;       // of all channels of a panel
constexpr int64_t kSerialFold = 60000;
constexpr int64_t kWeightRows = 512;  // the same for the weight gradient, where packing the gradient is shared
constexpr int64_t kOutBlock = 576;    // output channels of a task, whole blocks of any product
constexpr int64_t kLargestCached = 8 * 1024 * 1024;  // bytes of an output
constexpr int64_t kPlaneFloats = 12 * 1024;
constexpr int64_t kLargestTurned = 1024;          // pixels of a sample
constexpr double kCopyWork = 3;                   // copying a line, against adding one of pairs
constexpr int64_t kWholeStrips = 96;              // whole blocks and strips of any product
constexpr int64_t kChannelsPerTask = 16;          // groups are small: several make a task
constexpr int64_t kTasks = 16;                    // wanted, so that a few threads finish together
constexpr int64_t kWorkspace = 16 * 1024 * 1024;  // floats: partial sums of the weight gradient
constexpr double kSerialWork = 2e5;               // multiply-adds that are not worth waking a thread for

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Isa {
  const Kernels* kernels;
  bool runs;
};

#if defined(RADCONV_AMX)
// Linux hands the tile registers' state to a process that asks for it, for all its threads.
bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d & kBf16) != 0 && (d & kTile) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<Isa> isas() {
  std::vector<Isa> list{{&kernels_baseline, true}};
#if defined(RADCONV_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  list.push_back({&kernels_avx2, avx2});
  list.push_back({&kernels_avx512, avx512});
#if defined(RADCONV_BF16)
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  list.push_back({&kernels_avx512_bf16, bf16});
#if defined(RADCONV_AMX)
  list.push_back({&kernels_amx, bf16 && may_use_amx()});
#endif
#endif
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

// The sums that a line of outputs is made of: which mirrored planes and columns are added.
struct Sums {
  struct One {
    int64_t plane, column;  // of the first tap; its mirror image is as far from the other end
  };
  std::vector<One> all;                  // planes in order
  std::vector<std::vector<int64_t>> of;  // (planes, columns): index of the sum, -1 where no tap needs it

  Sums(const ConvShape& shape, const RingModel& model) {
    const int64_t deep = shape.axis[0].kernel, high = shape.axis[1].kernel, wide = shape.axis[2].kernel;
    of.assign(static_cast<size_t>((deep + 1) / 2), std::vector<int64_t>(static_cast<size_t>((wide + 1) / 2), -1));
    for (size_t z = 0; z < of.size(); ++z)
      for (size_t x = 0; x < of[z].size(); ++x) {
        bool needed = false;
        for (int64_t y = 0; y < high; ++y)
          needed |= model.bucket[(z * static_cast<size_t>(high) + static_cast<size_t>(y)) * wide + x] >= 0;
        if (!needed) continue;
        of[z][x] = static_cast<int64_t>(all.size());
        all.push_back({static_cast<int64_t>(z), static_cast<int64_t>(x)});
      }
  }
};

// Whether channels lie together, so that lanes are best channels: `channels` of them are worked on alike.
int64_t lane_group(const Strides& x, int64_t channels) {
  const int64_t lanes = kernels().lanes;
  return x.of[1] == 1 && x.of[4] != 1 && 2 * channels >= lanes ? lanes : 1;
}

// `pixels` is the most that a tile may have.
TileShape tile_shape(const ConvShape& shape, const Sums& sums, int64_t unit, bool even_lines, int64_t pixels) {
  const Axis* a = shape.axis;
  const int64_t lanes = kernels().lanes;
  TileShape t;
  t.unit = unit;
  t.even_lines = even_lines;
  t.sum_rows = (a[1].kernel - 1) * a[1].dilation + 1;
  const bool one_line = a[0].out * a[1].out == 1;
  const int64_t kept = t.sum_rows * static_cast<int64_t>(sums.all.size()) * unit;
  // narrow images whole
  const int64_t narrowest = unit == 1 || a[2].out <= lanes ? lanes : 4;
  const int64_t widest = std::max(narrowest, std::min(kRingFloats / kept, kWidestTile));
  t.out[2] = balanced(a[2].out, one_line ? pixels : std::min(pixels, widest));
  if (unit == 1 && t.out[2] < a[2].out) t.out[2] = std::min(round_up(t.out[2], lanes), a[2].out);  // whole cache lines
  const int64_t lines = std::max<int64_t>(pixels / t.out[2], 1);
  // The shape that reads and adds up the fewest lines for one of outputs: halo lines are copied, and added in pairs
  // anew for each plane.
  double least = 0;
  for (int64_t high = 1; high <= std::min(lines, a[1].out); ++high) {
    const int64_t deep = std::min(lines / high, a[0].out);
    const double tall = static_cast<double>((high - 1) * a[1].stride + t.sum_rows) / static_cast<double>(high);
    const double thick = static_cast<double>((deep - 1) * a[0].stride + (a[0].kernel - 1) * a[0].dilation + 1) /
                         static_cast<double>(deep);
    const double work = tall * (kCopyWork * thick + static_cast<double>(sums.all.size()));
    if (high > 1 && work > least) continue;
    least = work;
    t.out[1] = high;
    t.out[0] = deep;
  }
  t.out[1] = balanced(a[1].out, t.out[1]);
  t.out[0] = balanced(a[0].out, t.out[0]);
  for (int i = 0; i < 3; ++i) {
    t.count[i] = ceil_div(a[i].out, t.out[i]);
    t.halo[i] = (t.out[i] - 1) * a[i].stride + (a[i].kernel - 1) * a[i].dilation + 1;
  }
  t.phase_pitch = ceil_div(t.halo[2], a[2].stride) * unit;
  t.row_pitch = t.phase_pitch * a[2].stride;
  const int64_t arrays = static_cast<int64_t>(sums.all.size());
  t.all_sums = unit == 1 && a[1].stride == 1 && arrays * t.halo[1] * t.out[2] <= kPlaneFloats;
  if (t.all_sums) t.sum_rows = t.halo[1];
  t.sum_pitch = t.all_sums ? t.out[2] : round_up(t.out[2] * unit, lanes);
  t.sum_step = round_up(t.sum_rows * t.sum_pitch, lanes) + lanes;
  const int64_t line = even_lines ? round_up(t.out[2], 2) : t.out[2];
  // an odd number of cache lines, so that neighbouring rows don't compete for the same place in the cache
  const int64_t places = t.out[0] * t.out[1] * line;
  const bool whole = t.count[0] * t.count[1] * t.count[2] == 1;
  t.images = whole ? std::max<int64_t>(1, balanced(std::max<int64_t>(shape.batch, 1), pixels / places)) : 1;
  t.pitch = round_up(t.images * places, kWholeStrips) + 16;
  return t;
}

// The pixels of one tile, so that what belongs to it fits the cache and a small problem still has tasks to share.
int64_t tile_pixels(const ConvShape& shape, int64_t bytes_per_pixel, int64_t tasks_per_tile) {
  const int64_t by_cache = kCacheBytes / bytes_per_pixel;
  const int64_t image = shape.axis[0].out * shape.axis[1].out * shape.axis[2].out;
  const int64_t tiles = ceil_div(kTasks / 2, tasks_per_tile);
  const int64_t by_tasks = ceil_div(image * std::max<int64_t>(shape.batch, 1), tiles);
  return std::max(kSmallestTile, std::min({kLargestTile, by_cache, by_tasks}));
}

// Everything that a call points to.
struct Program {
  std::vector<int64_t> plane_low, plane_high, low, high, begin{0}, row;
  int64_t centre = 0, plane_sums = 0;

  Program(const ConvShape& shape, const RingModel& model, const Sums& sums, const TileShape& tile) {
    const Axis* a = shape.axis;
    const int64_t deep = a[0].kernel, tall = a[1].kernel, wide = a[2].kernel;
    for (int64_t z = 0; z < deep / 2; ++z) {
      plane_low.push_back(z * a[0].dilation);
      plane_high.push_back((deep - 1 - z) * a[0].dilation);
    }
    centre = deep / 2 * a[0].dilation;
    for (const Sums::One& sum : sums.all) {
      const bool paired = sum.plane < deep / 2;
      const int64_t plane = paired ? sum.plane * tile.halo[1] * tile.row_pitch : 0;
      plane_sums += paired;
      low.push_back(plane + column(a[2], tile, sum.column));
      high.push_back(plane + column(a[2], tile, wide - 1 - sum.column));
    }
    for (int64_t phase = 0; phase < (tile.all_sums ? 1 : tile.sum_rows); ++phase)
      for (int bucket = 0; bucket < model.buckets; ++bucket) {
        for (size_t s = 0; s < sums.all.size(); ++s)
          for (int64_t y = 0; y < tall; ++y) {
            const int64_t tap = (sums.all[s].plane * tall + y) * wide + sums.all[s].column;
            if (model.bucket[static_cast<size_t>(tap)] != bucket) continue;
            const int64_t place = (phase + y * a[1].dilation) % tile.sum_rows;
            row.push_back(static_cast<int64_t>(s) * tile.sum_step + place * tile.sum_pitch);
          }
        if (phase == 0) begin.push_back(static_cast<int64_t>(row.size()));
      }
  }

  AddProgram view() const {
    return {static_cast<int>(plane_low.size()),
            plane_low.data(),
            plane_high.data(),
            centre,
            plane_sums,
            low.data(),
            high.data(),
            static_cast<int64_t>(low.size()),
            static_cast<int>(begin.size()) - 1,
            begin.data(),
            row.data()};
  }

 private:
  static int64_t column(const Axis& axis, const TileShape& tile, int64_t tap) {
    const int64_t h = tap * axis.dilation;
    return h % axis.stride * tile.phase_pitch + h / axis.stride * tile.unit;
  }
};

// Whether lanes are best channels although these lie apart: images so small that lines would leave most lanes empty.
bool worth_turning(const ConvShape& shape, const Strides& x) {
  const Axis* a = shape.axis;
  const int64_t lanes = kernels().lanes, pixels = a[0].in * a[1].in * a[2].in;
  return a[2].out <= lanes && pixels >= lanes && pixels <= kLargestTurned && 2 * shape.groups >= lanes &&
         x.of[4] == 1 && x.of[3] == a[2].in && (a[0].in == 1 || x.of[2] == a[1].in * a[2].in);
}

// Channels of a lane group of a depthwise convolution.
int64_t depthwise_lanes(const ConvShape& shape, const Strides& x) {
  return worth_turning(shape, x) ? kernels().lanes : lane_group(x, shape.groups);
}

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
  const Sums sums(shape, model);
  bool nonfinite = false;
  ConvCall call;
  Buffer basis, mix;
  int64_t panel_bytes = 0;
  call.mix = nullptr;
  if (depthwise) {
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
    const Product product = shape.dtype == DType::kFloat32 ? k.float32 : k.bfloat16;
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
  const bool tiles = k.float32 == Product::kTile && !by_lane;
  const WeightView view =
      by_lane ? WeightView{w, transpose, 1, shape.groups, 1, model.rings}
              : WeightView{w, transpose, shape.groups, shape.in_per_group, shape.out_per_group, model.rings};
  const Sums sums(shape, model);
  bool nonfinite = false;
  WeightCall call;
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
  FinishCall finish{view,   total.get(), call.layout, grad_w == nullptr ? nullptr : to_w.data(),
                    grad_w, parameters,  ring.data(), function.data(),
                    nullptr};
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

std::vector<const char*> available_isas() {
  std::vector<const char*> names;
  for (const Isa& isa : isas())
    if (isa.runs) names.push_back(isa.kernels->name);
  return names;
}

const char* current_isa() { return kernels().name; }

}  // namespace radconv::cpu
