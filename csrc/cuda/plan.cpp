#include "cuda/plan.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "cuda_sizes.h"

namespace radconv::cuda {
namespace {

constexpr int64_t kMostInt = INT32_MAX;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int item_bytes(DType type) { return type == DType::kFloat32 ? 4 : 2; }

int as_int(int64_t value, const char* what) {
  if (value > kMostInt || value < -kMostInt)
    throw Unservable(std::string(what) + " is " + std::to_string(value) + ", more than 32 bits hold");
  return static_cast<int>(value);
}

// ---- one axis: residue classes --------------------------------------------------------------------------------------
// Outputs `classes * j + r` meet tap t at input `origin[r] + step * (stride * j + offset[r][t])`, where offset is -1
// for taps that meet no input.  Dilation vanishes in the step; an upsampled input leaves each class some of the taps.

struct AxisPlan {
  int64_t classes = 1, step = 1, stride = 1;
  int64_t span = 1;                          // largest offset, plus 1
  bool differ = false;                       // whether classes have different taps
  std::vector<int64_t> origin;               // (classes)
  std::vector<std::vector<int64_t>> offset;  // (classes or 1, taps)
};

AxisPlan plan_axis(const Axis& axis) {
  AxisPlan plan;
  if (axis.upsample == 1) {
    // a single tap may be dilated as one likes: then a stride skips nothing
    const int64_t dilation = axis.kernel == 1 ? axis.stride : axis.dilation;
    const int64_t common = std::gcd(dilation, axis.stride);
    plan.classes = dilation / common;
    plan.step = dilation;
    plan.stride = axis.stride / common;
    plan.span = axis.kernel;
    plan.offset.resize(1);
    for (int64_t t = 0; t < axis.kernel; ++t) plan.offset[0].push_back(t);
  } else if (axis.stride == 1) {
    plan.classes = axis.upsample;
    plan.differ = true;
  } else {
    throw Unservable("an input that is upsampled by " + std::to_string(axis.upsample) + " and strided by " +
                     std::to_string(axis.stride) + " along one axis has no kernel");
  }
  plan.classes = std::min(plan.classes, axis.out);
  for (int64_t r = 0; r < plan.classes; ++r) {
    if (!plan.differ) {
      plan.origin.push_back(axis.stride * r - axis.low);
      continue;
    }
    std::vector<int64_t> inputs;
    for (int64_t t = 0; t < axis.kernel; ++t) {
      const int64_t virtual_place = r + axis.dilation * t - axis.low;
      if (virtual_place % axis.upsample == 0) inputs.push_back(virtual_place / axis.upsample);
    }
    const int64_t first = inputs.empty() ? 0 : inputs.front();
    plan.origin.push_back(first);
    plan.offset.emplace_back();
    size_t next = 0;
    for (int64_t t = 0; t < axis.kernel; ++t) {
      const bool meets = (r + axis.dilation * t - axis.low) % axis.upsample == 0;
      plan.offset.back().push_back(meets ? inputs[next++] - first : -1);
    }
    if (!inputs.empty()) plan.span = std::max(plan.span, inputs.back() - first + 1);
  }
  return plan;
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

// The bucket of each shell of a disk or ball of this size, or nothing when the taps are not such.
std::vector<int> shells_of_ball(const RingModel& model, int k, int depth) {
  const int reach = k / 2, depth_reach = depth / 2;
  std::vector<std::pair<int, int>> seen;  // squared distance, bucket
  size_t tap = 0;
  for (int z = -depth_reach; z <= depth_reach; ++z)
    for (int y = -reach; y <= reach; ++y)
      for (int x = -reach; x <= reach; ++x) {
        const int square = z * z + y * y + x * x, bucket = model.bucket[tap++];
        if ((bucket >= 0) != (4 * square < k * k)) return {};
        if (bucket >= 0) seen.emplace_back(square, bucket);
      }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  std::vector<int> columns;
  for (size_t i = 0; i < seen.size(); ++i) {
    if (i > 0 && seen[i].first == seen[i - 1].first) return {};
    columns.push_back(seen[i].second);
  }
  return columns;
}

struct Chosen {
  KernelSize size;
  std::vector<int> columns;
};

Chosen choose_kernel(const ConvShape& shape, const RingModel& model, const std::array<AxisPlan, 3>& axes, int rows) {
  const int k = static_cast<int>(shape.axis[2].kernel), depth = static_cast<int>(shape.axis[0].kernel);
  const bool plain =
      std::all_of(axes.begin(), axes.end(), [](const AxisPlan& a) { return a.stride == 1 && !a.differ; });
  for (const KernelSize& size : kernel_sizes()) {
    if (size.k == 0) break;
    if (!plain || size.k != k || size.depth != depth || shape.axis[1].kernel != k || rows > size.functions) continue;
    std::vector<int> columns = shells_of_ball(model, k, depth);
    if (!columns.empty()) return {size, columns};
  }
  if (kernel_sizes().back().k != 0) throw Unservable("no kernel for any size was compiled");
  std::vector<int> columns(model.buckets);
  std::iota(columns.begin(), columns.end(), 0);
  return {kernel_sizes().back(), columns};
}

// ---- tiles and shared memory ----------------------------------------------------------------------------------------

struct Layout {
  std::array<int, 3> tile{}, halo{};
  int halo_buffers = 0, weight_buffers = 0, block_outputs = 0;
};

// Places in shared memory, and how much there is in all.
int lay_out(ConvParams& p, const Layout& layout, const KernelSize& size) {
  const int64_t pixels = int64_t{layout.halo[0]} * layout.halo[1] * layout.halo[2];
  // in 3D two planes at a time are there
  const int64_t held = size.depth > 1 ? pixels / layout.halo[0] * 2 : pixels;
  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 128);
    return static_cast<int>(std::min(at, kMostInt));
  };
  p.halo_buffers = layout.halo_buffers;
  p.weight_buffers = layout.weight_buffers;
  p.block_outputs = layout.block_outputs;
  p.halo_bytes = static_cast<int>(std::min(held * kPixelBytes, kMostInt));
  p.weight_bytes = p.per_pass * p.block_outputs * kPixelBytes;
  place(2 * int64_t{p.halo_buffers} * p.halo_bytes);
  p.ring_at = place(2 * ring_bytes(size.functions));
  p.weight_at = place(int64_t{p.weight_buffers} * p.weight_bytes);
  p.basis_at = place(size.k > 0 ? 4 * int64_t{p.shells} * p.basis_pitch : 0);
  p.gather_at = place(4 * pixels);
  p.pixel_at = place(size.k > 0 ? 0 : 4 * kPixels);
  end = std::max(end, int64_t{4} * kStageBytes);  // outputs pass through the memory before this
  p.place_at = place(kPlaceBytes);
  return static_cast<int>(std::min(end, kMostInt));
}

std::vector<std::array<int, 3>> possible_tiles(const KernelSize& size) {
  if (size.k > 0) return {{1, kTileHeight, kTileWidth}};
  std::vector<std::array<int, 3>> tiles;
  for (int d = 1; d <= kPixels; d *= 2)
    for (int h = 1; d * h <= kPixels; h *= 2)
      for (int w = 1; d * h * w <= kPixels; w *= 2) tiles.push_back({d, h, w});
  return tiles;
}

// The tile with the least work whose halo fits, with as many buffers and outputs as there is room for.
Layout choose_layout(ConvParams& p, const std::array<AxisPlan, 3>& axes, const KernelSize& size, int most_shared) {
  const int outputs = static_cast<int>(std::min<int64_t>(round_up(p.outputs, 16), kMostOutputs));
  Layout best;
  int64_t least_work = -1, smallest = -1;
  for (const auto& tile : possible_tiles(size)) {
    Layout layout;
    layout.tile = tile;
    int64_t tiles = 1, pixels = 1;
    for (int axis = 0; axis < 3; ++axis) {
      const AxisPlan& a = axes[axis];
      const int64_t halo = a.stride * (tile[axis] - 1) + a.span;
      layout.halo[axis] = static_cast<int>(std::min(halo, kMostInt));
      tiles *= ceil_div(ceil_div(p.out_size[axis], a.classes), tile[axis]);
      pixels = std::min(pixels * layout.halo[axis], int64_t{1} << 40);
    }
    const int64_t work = tiles * (8 * kPixels + pixels);  // a tile's product and rings cost the same, whatever it holds
    if (least_work >= 0 && work >= least_work) continue;
    constexpr int kBuffers[][2] = {{2, 2}, {1, 2}, {1, 1}};
    bool fits = false;
    for (int narrow = 0; narrow < 2 && !fits; ++narrow)
      for (const auto& buffers : kBuffers) {
        layout.halo_buffers = buffers[0];
        layout.weight_buffers = buffers[1];
        layout.block_outputs = narrow ? std::min(outputs, 64) : outputs;
        const int64_t needed = pixels > kMostInt / 256 ? kMostInt : lay_out(p, layout, size);
        if (smallest < 0 || needed < smallest) smallest = needed;
        fits = needed <= most_shared;
        if (fits) break;
      }
    if (!fits) continue;
    least_work = work;
    best = layout;
  }
  if (least_work < 0)
    throw Unservable("the pixels that one output meets take " + std::to_string(smallest) +
                     " bytes of shared memory, a block of this card has " + std::to_string(most_shared));
  return best;
}

// ---- tables ---------------------------------------------------------------------------------------------------------

class Tables {
 public:
  int add(const std::vector<double>& values) {
    const size_t at = ints_.size();
    ints_.resize(at + 2 * values.size());
    if (!values.empty()) std::memcpy(&ints_[at], values.data(), 8 * values.size());
    return static_cast<int>(at);
  }
  int add(const std::vector<int32_t>& values) {
    const size_t at = ints_.size();
    ints_.insert(ints_.end(), values.begin(), values.end());
    if (ints_.size() % 2) ints_.push_back(0);
    return static_cast<int>(at);
  }
  std::vector<int32_t> take() { return std::move(ints_); }

 private:
  std::vector<int32_t> ints_;
};

// Taps of each class' shells, as bytes in the halo, and where each shell begins among them.
void tabulate_taps(Plan& plan, Tables& tables, const RingModel& model, const ConvShape& shape,
                   const std::array<AxisPlan, 3>& axes) {
  ConvParams& p = plan.conv;
  for (int axis = 0; axis < 3; ++axis) p.tap_classes[axis] = axes[axis].differ ? p.classes[axis] : 1;
  std::vector<int32_t> starts, taps;
  for (int d = 0; d < p.tap_classes[0]; ++d)
    for (int h = 0; h < p.tap_classes[1]; ++h)
      for (int w = 0; w < p.tap_classes[2]; ++w) {
        const auto &z = axes[0].offset[d], &y = axes[1].offset[h], &x = axes[2].offset[w];
        for (int shell = 0; shell < p.shells; ++shell) {
          starts.push_back(as_int(static_cast<int64_t>(taps.size()), "the number of taps of all residue classes"));
          size_t tap = 0;
          for (int64_t i = 0; i < shape.axis[0].kernel; ++i)
            for (int64_t j = 0; j < shape.axis[1].kernel; ++j)
              for (int64_t k = 0; k < shape.axis[2].kernel; ++k)
                if (model.bucket[tap++] == shell && z[i] >= 0 && y[j] >= 0 && x[k] >= 0)
                  taps.push_back(static_cast<int32_t>(((z[i] * p.halo[1] + y[j]) * p.halo[2] + x[k]) * kPixelBytes));
        }
        starts.push_back(static_cast<int32_t>(taps.size()));
      }
  p.starts = tables.add(starts);
  p.taps = tables.add(taps);
}

// Offsets within a tile, or with circular padding within an image, are 32-bit; the place of that in the tensor is not.
void check_offsets(const ConvParams& p) {
  int64_t span = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t pixels = p.wrap ? p.in_size[axis] : int64_t{p.step[axis]} * p.halo[axis];
    span += pixels * std::abs(p.x_strides[2 + axis]) * p.item;
    as_int(2 * (int64_t{p.step[axis]} * p.halo[axis] + p.in_size[axis]), "twice the size of a padded tile");
  }
  as_int(span, "the number of bytes that one block's pixels span");
}

}  // namespace

const std::vector<KernelSize>& kernel_sizes() {
  static const std::vector<KernelSize> sizes = {
#define X(K, DEPTH) {K, DEPTH, K > 0 ? K / 2 + 1 : kTableFunctions},
      RADCONV_CUDA_SIZES
#undef X
  };
  return sizes;
}

Plan make_plan(const ConvShape& shape, const RingModel& model, bool transpose, const Strides& x, const Strides& y,
               int most_shared) {
  const int rows = std::min(model.rings, model.buckets);
  const int64_t doubles = int64_t{model.rings} * rows + int64_t{std::max(model.rings, rows)} * model.buckets;
  if (doubles > kMostPrepDoubles)
    throw Unservable("a profile of " + std::to_string(model.rings) + " rings by " + std::to_string(model.buckets) +
                     " shells is larger than one block holds");
  std::array<AxisPlan, 3> axes;
  for (int axis = 0; axis < 3; ++axis) axes[axis] = plan_axis(shape.axis[axis]);
  const Chosen chosen = choose_kernel(shape, model, axes, rows);
  const bool any_size = chosen.size.k == 0;

  Plan plan;
  plan.k = chosen.size.k;
  plan.depth = chosen.size.depth;
  plan.dtype = shape.dtype;
  ConvParams& p = plan.conv;
  // an axis of one element has no meaningful stride
  const int64_t elements[5] = {shape.batch, 0, shape.axis[0].in, shape.axis[1].in, shape.axis[2].in};
  for (int i = 0; i < 5; ++i) {
    p.x_strides[i] = i != 1 && elements[i] == 1 ? 0 : x.of[i];
    p.y_strides[i] = y.of[i];
  }
  for (int axis = 0; axis < 3; ++axis) {
    const Axis& a = shape.axis[axis];
    p.in_size[axis] = as_int(a.in, "the size of the input");
    p.out_size[axis] = as_int(a.out, "the size of the output");
    p.classes[axis] = as_int(axes[axis].classes, "the number of residue classes");
    p.step[axis] = as_int(axes[axis].step, "the dilation");
    p.stride[axis] = as_int(axes[axis].stride, "the stride");
    as_int(2 * (a.in + a.out * a.stride + a.dilation * a.kernel + std::abs(a.low)), "twice the padded size");
  }
  p.wrap = shape.wrap;
  p.item = item_bytes(shape.dtype);
  p.channels = as_int(shape.in_per_group, "the number of input channels");
  p.outputs = as_int(shape.out_per_group, "the number of output channels");
  p.groups = as_int(shape.groups, "the number of groups");
  p.shells = static_cast<int>(chosen.columns.size());
  p.passes = any_size ? static_cast<int>(ceil_div(rows, kTableFunctions)) : 1;
  p.per_pass = any_size ? static_cast<int>(ceil_div(rows, p.passes)) : chosen.size.functions;
  const int slot = any_size ? kTableFunctions : static_cast<int>(round_up(chosen.size.functions, 4));
  p.basis_pitch = p.passes * slot;
  const int chunk = kPixelBytes / item_bytes(shape.dtype);
  const int chunks = static_cast<int>(ceil_div(p.channels, chunk));
  p.steps = as_int(int64_t{chunks} * p.passes, "the number of steps");

  const Layout layout = choose_layout(p, axes, chosen.size, most_shared);
  plan.shared = lay_out(p, layout, chosen.size);
  p.out_blocks = static_cast<int>(ceil_div(p.outputs, p.block_outputs));
  int64_t blocks = shape.batch * p.groups * p.out_blocks;
  for (int axis = 0; axis < 3; ++axis) {
    p.tile[axis] = layout.tile[axis];
    p.halo[axis] = layout.halo[axis];
    p.tiles[axis] = static_cast<int>(ceil_div(ceil_div(p.out_size[axis], p.classes[axis]), p.tile[axis]));
    blocks *= int64_t{p.tiles[axis]} * p.classes[axis];
  }
  plan.blocks = static_cast<unsigned>(as_int(blocks, "the number of blocks"));
  check_offsets(p);

  Tables tables;
  PrepParams& q = plan.prep;
  std::vector<double> counts(model.buckets, 0.0), radii = model.radius;
  for (int bucket : model.bucket)
    if (bucket >= 0) ++counts[bucket];
  q.counts = tables.add(counts);
  q.radii = tables.add(radii);
  q.centres = tables.add(model.centre);
  q.columns = tables.add(std::vector<int32_t>(chosen.columns.begin(), chosen.columns.end()));
  for (int axis = 0; axis < 3; ++axis)
    p.origins[axis] = tables.add(std::vector<int32_t>(axes[axis].origin.begin(), axes[axis].origin.end()));
  if (any_size) tabulate_taps(plan, tables, model, shape, axes);
  plan.tables = tables.take();

  p.weights = round_up(4 * int64_t{p.shells} * p.basis_pitch, 256);
  plan.workspace = p.weights + int64_t{p.groups} * p.out_blocks * p.steps * p.weight_bytes;
  q.family = model.family;
  q.rings = model.rings;
  q.buckets = model.buckets;
  q.rows = rows;
  q.sigma_min = model.sigma_min;
  q.sigma_max = model.sigma_max;
  q.shells = p.shells;
  q.basis_pitch = p.basis_pitch;
  q.slot = slot;
  q.per_pass = p.per_pass;
  const int64_t per_pair = model.rings, block = shape.in_per_group * shape.out_per_group * per_pair;
  q.w_group = block;
  q.w_out = transpose ? per_pair : shape.in_per_group * per_pair;
  q.w_in = transpose ? shape.out_per_group * per_pair : per_pair;
  q.channels = p.channels;
  q.outputs = p.outputs;
  q.groups = p.groups;
  q.out_blocks = p.out_blocks;
  q.block_outputs = p.block_outputs;
  q.chunks = chunks;
  q.passes = p.passes;
  q.weights = p.weights;
  q.type = shape.dtype;
  plan.prep_shared = static_cast<int>(8 * doubles);
  const int64_t pairs = int64_t{p.groups} * p.out_blocks * chunks * p.block_outputs * chunk;
  plan.prep_blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(pairs, kPrepThreads), 1, 512));
  return plan;
}

Loader loader_of(const Plan& plan, const void* x) {
  const ConvParams& p = plan.conv;
  const int item = item_bytes(plan.dtype);
  const auto aligned = [&](int64_t bytes) {
    bool all = reinterpret_cast<uintptr_t>(x) % bytes == 0 && (p.groups == 1 || p.channels * item % bytes == 0);
    for (int i : {0, 2, 3, 4}) all = all && p.x_strides[i] * item % bytes == 0;
    return all && p.x_strides[1] == 1;
  };
  if (aligned(16)) return Loader::kVector;
  return item == 4 || aligned(4) ? Loader::kWord : Loader::kScalar;
}

}  // namespace radconv::cuda
