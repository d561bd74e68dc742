#include "cuda/geometry.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cuda_sizes.h"

namespace radconv::cuda {
namespace {

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

}  // namespace

Format format_of(DType type, bool exact) {
  if (type == DType::kFloat32) return exact ? Format::kFloat32 : Format::kTF32;
  return type == DType::kFloat16 ? Format::kFloat16 : Format::kBFloat16;
}

int as_int(int64_t value, const char* what) {
  if (value > kMostInt || value < -kMostInt)
    throw Unservable(std::string(what) + " is " + std::to_string(value) + ", more than 32 bits hold");
  return static_cast<int>(value);
}

AxisPlans plan_axes(const ConvShape& shape) {
  return {plan_axis(shape.axis[0]), plan_axis(shape.axis[1]), plan_axis(shape.axis[2])};
}

const std::vector<KernelSize>& kernel_sizes() {
  static const std::vector<KernelSize> sizes = {
#define X(K, DEPTH) {K, DEPTH},
      RADCONV_CUDA_SIZES
#undef X
  };
  return sizes;
}

Chosen choose_kernel(const ConvShape& shape, const RingModel& model, const AxisPlans& axes) {
  const int64_t k = shape.axis[2].kernel, depth = shape.axis[0].kernel;
  const bool plain =
      std::all_of(axes.begin(), axes.end(), [](const AxisPlan& a) { return a.stride == 1 && !a.differ; });
  for (const KernelSize& size : kernel_sizes()) {
    if (!plain || size.k != k || size.depth != depth || shape.axis[1].kernel != k) continue;
    std::vector<int> columns = shells_of_ball(model, size.k, size.depth);
    if (!columns.empty()) return {size, columns};
  }
  return any_size(model);
}

Chosen any_size(const RingModel& model) {
  if (!kernel_sizes().back().any()) throw Unservable("no kernel for any size was compiled");
  std::vector<int> columns(model.buckets);
  std::iota(columns.begin(), columns.end(), 0);
  return {kernel_sizes().back(), columns};
}

std::vector<std::array<int, 3>> tiles_of(int pixels) {
  std::vector<std::array<int, 3>> tiles;
  for (int d = 1; d <= pixels; d *= 2)
    for (int h = 1; d * h <= pixels; h *= 2)
      for (int w = 1; d * h * w <= pixels; w *= 2) tiles.push_back({d, h, w});
  return tiles;
}

int64_t taps_of(const RingModel& model) {
  return std::count_if(model.bucket.begin(), model.bucket.end(), [](int bucket) { return bucket >= 0; });
}

int merged_groups(const ConvShape& shape, int chunk) {
  const int64_t most = std::min(chunk / shape.in_per_group, kMostOutputs / shape.out_per_group);
  int64_t merged = std::max<int64_t>(1, std::min(most, shape.groups));
  while (shape.groups % merged != 0) --merged;
  return static_cast<int>(merged);
}

ConvShape merge_groups(const ConvShape& shape, int merged) {
  ConvShape wide = shape;
  wide.groups /= merged;
  wide.in_per_group *= merged;
  wide.out_per_group *= merged;
  return wide;
}

int Tables::add(const std::vector<double>& values) {
  const size_t at = ints_.size();
  ints_.resize(at + 2 * values.size());
  if (!values.empty()) std::memcpy(&ints_[at], values.data(), 8 * values.size());
  return static_cast<int>(at);
}

int Tables::add(const std::vector<int32_t>& values) {
  const size_t at = ints_.size();
  ints_.insert(ints_.end(), values.begin(), values.end());
  if (ints_.size() % 2) ints_.push_back(0);
  return static_cast<int>(at);
}

void copy_strides(int64_t (&to)[5], const Strides& from, const ConvShape& shape, Side side) {
  for (int i = 0; i < 5; ++i) to[i] = from.of[i];
  if (shape.batch == 1) to[0] = 0;
  for (int axis = 0; axis < 3; ++axis)
    if ((side == Side::kInput ? shape.axis[axis].in : shape.axis[axis].out) == 1) to[2 + axis] = 0;
}

void describe(Geometry& g, const ConvShape& shape, const AxisPlans& axes, const Strides& x, int shells) {
  copy_strides(g.x_strides, x, shape, Side::kInput);
  for (int axis = 0; axis < 3; ++axis) {
    const Axis& a = shape.axis[axis];
    g.in_size[axis] = as_int(a.in, "the size of the input");
    g.out_size[axis] = as_int(a.out, "the size of the output");
    g.classes[axis] = as_int(axes[axis].classes, "the number of residue classes");
    g.step[axis] = as_int(axes[axis].step, "the dilation");
    g.stride[axis] = as_int(axes[axis].stride, "the stride");
    as_int(2 * (a.in + a.out * a.stride + a.dilation * a.kernel + std::abs(a.low)), "twice the padded size");
  }
  g.wrap = shape.wrap;
  g.item = item_bytes(shape.dtype);
  g.channels = as_int(shape.in_per_group, "the number of input channels");
  g.groups = as_int(shape.groups, "the number of groups");
  g.shells = shells;
}

std::array<int64_t, 3> halo_of(const AxisPlans& axes, const std::array<int, 3>& tile) {
  std::array<int64_t, 3> halo{};
  for (int axis = 0; axis < 3; ++axis) halo[axis] = axes[axis].stride * (tile[axis] - 1) + axes[axis].span;
  return halo;
}

int64_t tiles_of_image(const Geometry& g) {
  int64_t tiles = 1;
  for (int axis = 0; axis < 3; ++axis) tiles *= int64_t{g.tiles[axis]} * g.classes[axis];
  return tiles;
}

int64_t set_tile(Geometry& g, const AxisPlans& axes, const std::array<int, 3>& tile) {
  const std::array<int64_t, 3> halo = halo_of(axes, tile);
  for (int axis = 0; axis < 3; ++axis) {
    g.tile[axis] = tile[axis];
    g.halo[axis] = as_int(halo[axis], "the size of a padded tile");
    g.tiles[axis] = static_cast<int>(ceil_div(ceil_div(g.out_size[axis], g.classes[axis]), tile[axis]));
    as_int(int64_t{g.classes[axis]} * g.tiles[axis] * tile[axis] + g.classes[axis], "the size of all tiles");
  }
  return tiles_of_image(g);
}

void tabulate(Geometry& g, Tables& tables, const ConvShape& shape, const RingModel& model, const AxisPlans& axes,
              bool any_size) {
  for (int axis = 0; axis < 3; ++axis)
    g.origins[axis] = tables.add(std::vector<int32_t>(axes[axis].origin.begin(), axes[axis].origin.end()));
  if (!any_size) return;
  for (int axis = 0; axis < 3; ++axis) g.tap_classes[axis] = axes[axis].differ ? g.classes[axis] : 1;
  // taps of each class' shells, as bytes in the halo, and where each shell begins among them
  std::vector<int32_t> starts, taps;
  for (int d = 0; d < g.tap_classes[0]; ++d)
    for (int h = 0; h < g.tap_classes[1]; ++h)
      for (int w = 0; w < g.tap_classes[2]; ++w) {
        const auto &z = axes[0].offset[d], &y = axes[1].offset[h], &x = axes[2].offset[w];
        for (int shell = 0; shell < g.shells; ++shell) {
          starts.push_back(as_int(static_cast<int64_t>(taps.size()), "the number of taps of all residue classes"));
          size_t tap = 0;
          for (int64_t i = 0; i < shape.axis[0].kernel; ++i)
            for (int64_t j = 0; j < shape.axis[1].kernel; ++j)
              for (int64_t k = 0; k < shape.axis[2].kernel; ++k)
                if (model.bucket[tap++] == shell && z[i] >= 0 && y[j] >= 0 && x[k] >= 0)
                  taps.push_back(static_cast<int32_t>(((z[i] * g.halo[1] + y[j]) * g.halo[2] + x[k]) * kPixelBytes));
        }
        starts.push_back(static_cast<int32_t>(taps.size()));
      }
  g.starts = tables.add(starts);
  g.taps = tables.add(taps);
}

ProfileParams describe_profile(const RingModel& model, const std::vector<int>& columns, Tables& tables) {
  ProfileParams p{};
  p.family = model.family;
  p.rings = model.rings;
  p.buckets = model.buckets;
  p.sigma_min = model.sigma_min;
  p.sigma_max = model.sigma_max;
  std::vector<double> counts(model.buckets, 0.0);
  for (int bucket : model.bucket)
    if (bucket >= 0) ++counts[bucket];
  p.counts = tables.add(counts);
  p.radii = tables.add(model.radius);
  p.centres = tables.add(model.centre);
  p.columns = tables.add(std::vector<int32_t>(columns.begin(), columns.end()));
  p.shells = static_cast<int>(columns.size());
  return p;
}

WeightParams describe_weights(const ConvShape& shape, int rings, bool transpose) {
  WeightParams w{};
  w.group = shape.in_per_group * shape.out_per_group * rings;
  w.out = transpose ? rings : shape.in_per_group * rings;
  w.in = transpose ? shape.out_per_group * rings : rings;
  return w;
}

void check_offsets(const Geometry& g) {
  int64_t span = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t pixels = g.wrap ? g.in_size[axis] : int64_t{g.step[axis]} * g.halo[axis];
    span += pixels * std::abs(g.x_strides[2 + axis]) * g.item;
    as_int(2 * (int64_t{g.step[axis]} * g.halo[axis] + g.in_size[axis]), "twice the size of a padded tile");
  }
  as_int(span, "the number of bytes that one block's pixels span");
}

Loader loader_of(const void* data, const int64_t (&strides)[5], int groups, int channels, int item) {
  const auto aligned = [&](int64_t bytes) {
    bool all = reinterpret_cast<uintptr_t>(data) % bytes == 0 && (groups == 1 || int64_t{channels} * item % bytes == 0);
    for (int i : {0, 2, 3, 4}) all = all && strides[i] * item % bytes == 0;
    return all && strides[1] == 1;
  };
  if (aligned(16)) return Loader::kVector;
  return item == 4 || aligned(4) ? Loader::kWord : Loader::kScalar;
}

}  // namespace radconv::cuda
