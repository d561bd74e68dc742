#include "cuda/depthwise_plan.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace radconv::cuda {
namespace {

constexpr double kShellSlots = 3;  // of a shell in 3D, whose planes meet several values

struct Problem {
  ConvShape shape;  // all channels in one group
  AxisPlans axes;
  Chosen chosen;
  int64_t taps;
};

Problem problem_of(const ConvShape& given, const RingModel& model) {
  if (given.in_per_group != 1 || given.out_per_group != 1)
    throw Unservable("depthwise kernels take one channel to one, these groups take " +
                     std::to_string(given.in_per_group) + " to " + std::to_string(given.out_per_group));
  Problem problem;
  problem.shape = merge_groups(given, static_cast<int>(given.groups));
  problem.axes = plan_axes(given);
  problem.chosen = choose_kernel(given, model, problem.axes);
  const Axis& depth = given.axis[0];
  const bool flat = depth.in == 1 && depth.out == 1 && depth.low == 0;
  if (problem.chosen.size.depth == 1 && !flat) problem.chosen = any_size(model);
  problem.taps = taps_of(model);
  return problem;
}

// All but what depends on the tile.
void describe_depthwise(DepthwiseGeometry& g, const Problem& problem, const Strides& x, const Strides& out) {
  const ConvShape& shape = problem.shape;
  describe(g, shape, problem.axes, x, static_cast<int>(problem.chosen.columns.size()));
  copy_strides(g.out.strides, out, shape, Side::kOutput);
  for (int64_t& stride : g.out.strides) stride *= g.item;
  as_int(g.out.strides[3] * g.classes[1] * kTileHeight, "the number of bytes that one block's outputs span");
  g.chunks = static_cast<int>(ceil_div(g.channels, kPixelBytes / g.item));
}

std::vector<std::array<int, 3>> possible_tiles(const DepthwiseGeometry& g, const KernelSize& size) {
  if (size.any()) return tiles_of(kSlots * kSlotPixels);
  // how far to march: less than all the way to fill the card
  std::vector<std::array<int, 3>> tiles;
  for (int64_t depth = size.depth > 1 ? ceil_div(g.out_size[0], g.classes[0]) : 1;; depth = ceil_div(depth, 2)) {
    tiles.push_back({static_cast<int>(depth), kTileHeight, kTileWidth});
    if (depth == 1) return tiles;
  }
}

// Places in shared memory, and how much there is in all; a buffer holds `behind` bytes behind its pixels.
int64_t lay_out(DepthwiseGeometry& g, const KernelSize& size, int buffers, int behind, int spots) {
  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 128);
    return static_cast<int>(at);
  };
  g.plane = g.halo[1] * g.halo[2] * (size.any() ? g.halo[0] : 1);
  g.buffers = buffers;
  g.buffer_bytes = static_cast<int>(round_up(int64_t{g.plane} * kPixelBytes + behind, 128));
  place(int64_t{g.buffers} * g.buffer_bytes);
  g.gather_at = place(4 * int64_t{g.plane});
  g.pixel_at = place(size.any() ? kPixelPlaceBytes * kGroupThreads : 0);
  g.spot_at = place(spots * kSpotBytes);
  return end;
}

// Clocks of one plane (of any size: of one tile) of a chunk, when `residents` blocks share a multiprocessor.
double plane_clocks(const DepthwiseGeometry& g, const Problem& problem, int residents) {
  const KernelSize& size = problem.chosen.size;
  const int channels = kPixelBytes / g.item;
  const double pixels = kGroupThreads * residents;
  const Stage stage{Format::kFloat32,
                    kGroupThreads,
                    g.plane,
                    size.depth > 1 ? int64_t{size.k} * size.k : problem.taps,
                    size.k,
                    g.shells,
                    1,
                    1,
                    1,
                    channels};
  const double more = size.depth > 1 ? kShellSlots * g.shells : 0;
  return pixels * channels * (ring_slots(stage) + more) / kSlotsPerClock;
}

// One way to share out the work of a plan.
struct Share {
  std::array<int, 3> tile{};
  int buffers = 0;
  int64_t blocks = 0;
  int parts = 0;  // chunks of a block, or splits
  double time = INFINITY;
};

// The fastest share: `lay(buffers)` places everything in shared memory, `share(tiles, clocks of an item, blocks at a
// time)` the work.
template <class Lay, class Divide>
Share best_share(DepthwiseGeometry& g, const Problem& problem, const Card& card, int most_residents, const Lay& lay,
                 const Divide& divide) {
  const KernelSize& size = problem.chosen.size;
  Share best;
  int64_t smallest = kMostInt;
  for (const auto& tile : possible_tiles(g, size)) {
    const std::array<int64_t, 3> halo = halo_of(problem.axes, tile);
    constexpr int64_t kMostPixels = 1 << 20;
    if (halo[1] > kMostPixels / halo[2] || (size.any() && halo[0] > kMostPixels / (halo[1] * halo[2]))) continue;
    const int64_t tiles = problem.shape.batch * set_tile(g, problem.axes, tile);
    for (int buffers = 2; buffers >= (size.any() ? 1 : 2); --buffers) {
      const int64_t shared = lay(buffers);
      smallest = std::min(smallest, shared);
      if (shared > card.shared) continue;
      const int residents =
          static_cast<int>(std::clamp<int64_t>(card.shared / (shared + kReservedShared), 1, most_residents));
      const int planes = size.any() ? 1 : tile[0] + size.depth - 1;
      Share found = divide(tiles, planes * plane_clocks(g, problem, residents), card.multiprocessors * residents);
      if (found.time >= best.time) break;
      best = found;
      best.tile = tile;
      best.buffers = buffers;
      break;
    }
  }
  if (best.time == INFINITY)
    throw Unservable("the pixels that one output meets take " + std::to_string(smallest) +
                     " bytes of shared memory, a block of this card has " + std::to_string(card.shared));
  set_tile(g, problem.axes, best.tile);
  return best;
}

// The gather table of known sizes holds one plane.
void check_span(const DepthwiseGeometry& p, const KernelSize& size) {
  Geometry plane = p;
  if (!size.any()) plane.halo[0] = 1;
  check_offsets(plane);
}

}  // namespace

DepthwisePlan make_depthwise_plan(const ConvShape& shape, const RingModel& model, bool transpose, bool /* exact */,
                                  const Strides& x, const Strides& y, const Card& card) {
  const Problem problem = problem_of(shape, model);
  DepthwisePlan plan;
  plan.size = problem.chosen.size;
  plan.format = format_of(shape.dtype, true);
  DepthwiseParams& p = plan.conv;
  describe_depthwise(p, problem, x, y);
  const int chunk = kPixelBytes / p.item, behind = 4 * (p.shells + 1) * chunk;
  p.value_bytes = behind;

  const auto lay = [&](int buffers) { return lay_out(p, plan.size, buffers, plan.size.any() ? 0 : behind, 1); };
  const auto divide = [&](int64_t tiles, double clocks, int at_a_time) {
    Share best;
    for (int64_t chunks = p.chunks;; chunks = ceil_div(chunks, 2)) {
      const int64_t blocks = tiles * ceil_div(p.chunks, chunks);
      const double time = waves(blocks, at_a_time) * (kStartClocks + static_cast<double>(chunks) * clocks);
      if (time < best.time) best = {{}, 0, blocks, static_cast<int>(chunks), time};
      if (chunks == 1) return best;
    }
  };
  const int residents = forward_residents(plan.size.k, plan.size.depth, p.item == 2);
  const Share share = best_share(p, problem, card, residents, lay, divide);
  plan.shared = static_cast<int>(lay(share.buffers));
  plan.blocks = static_cast<unsigned>(as_int(share.blocks, "the number of blocks"));
  p.values_at = p.plane * kPixelBytes;
  p.block_chunks = share.parts;
  p.chunk_blocks = static_cast<int>(ceil_div(p.chunks, p.block_chunks));
  check_span(p, plan.size);

  Tables tables;
  FoldParams& fold = plan.fold;
  fold.profile = describe_profile(model, problem.chosen.columns, tables);
  tabulate(p, tables, problem.shape, model, problem.axes, plan.size.any());
  plan.tables = tables.take();
  fold.weights = describe_weights(shape, model.rings, transpose);
  fold.channels = p.channels;
  fold.chunks = p.chunks;
  fold.chunk = chunk;
  const int64_t profile_bytes = 8 * int64_t{model.rings} * p.shells;
  if (profile_bytes > kMostFoldShared)
    throw Unservable("a profile of " + std::to_string(model.rings) + " rings by " + std::to_string(p.shells) +
                     " shells is larger than one block holds");
  plan.fold_shared = static_cast<int>(profile_bytes);
  const int64_t values = int64_t{p.chunks} * p.value_bytes / 4;
  plan.fold_blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(values, kFoldThreads), 1, 256));
  plan.workspace = round_up(4 * values, 256);
  return plan;
}

DepthwiseGradientPlan make_depthwise_gradient_plan(const ConvShape& shape, const RingModel& model, bool transpose,
                                                   bool /* exact */, const Strides& x, const Strides& grad,
                                                   const Card& card) {
  const Problem problem = problem_of(shape, model);
  for (const AxisPlan& axis : problem.axes)
    if (axis.differ) throw Unservable("the weight gradient of an upsampled input is that of the adjoint convolution");
  DepthwiseGradientPlan plan;
  plan.size = problem.chosen.size;
  plan.format = format_of(shape.dtype, true);
  DepthwiseGradientParams& p = plan.conv;
  describe_depthwise(p, problem, x, grad);
  p.block_shells = plan.size.any() ? std::min(p.shells, kMostBlockShells) : p.shells;
  p.shell_blocks = static_cast<int>(ceil_div(p.shells, p.block_shells));

  const int chunk = kPixelBytes / p.item;
  const auto lay = [&](int buffers) {
    const int64_t end = lay_out(p, plan.size, buffers, 0, kGradientSpots);
    p.totals_at = static_cast<int>(end);
    return end + int64_t{4} * kDepthwiseWarps * (p.block_shells + 1) * chunk;
  };
  const int64_t copy = 4 * int64_t{p.channels} * (p.shells + 1);
  const auto divide = [&](int64_t tiles, double clocks, int at_a_time) {
    const int64_t units = int64_t{p.chunks} * p.shell_blocks;
    const int64_t most = std::min({tiles, kMostWorkspace / copy, 4 * ceil_div(at_a_time, units)});
    Share best;
    for (int64_t wanted = 1; wanted <= std::max<int64_t>(most, 1); ++wanted) {
      const int64_t each = ceil_div(tiles, wanted), splits = each > 0 ? ceil_div(tiles, each) : 1;
      const double copies = static_cast<double>(2 * splits * copy) / (kBytesPerClock * card.multiprocessors);
      const double time =
          waves(units * splits, at_a_time) * (kStartClocks + static_cast<double>(each) * clocks) + copies;
      if (time < best.time) best = {{}, 0, units * splits, static_cast<int>(splits), time};
    }
    return best;
  };
  const int residents = gradient_residents(plan.size.k, plan.size.depth, p.item == 2);
  const Share share = best_share(p, problem, card, residents, lay, divide);
  plan.shared = static_cast<int>(lay(share.buffers));
  plan.blocks = static_cast<unsigned>(as_int(share.blocks, "the number of blocks"));
  const int64_t tiles = shape.batch * tiles_of_image(p);
  p.all_tiles = as_int(tiles, "the number of tiles");
  p.splits = share.parts;
  p.split_tiles = static_cast<int>(ceil_div(tiles, p.splits));
  check_span(p, plan.size);

  Tables tables;
  const ProfileParams profile = describe_profile(model, problem.chosen.columns, tables);
  tabulate(p, tables, problem.shape, model, problem.axes, plan.size.any());
  plan.tables = tables.take();
  p.counter = 0;
  p.sums = 256;
  p.bias_sums = p.sums + round_up(int64_t{4} * p.splits * p.channels * p.shells, 256);
  plan.workspace = p.bias_sums + int64_t{4} * p.splits * p.channels;
  plan.finish = make_finish_plan(shape, profile, describe_weights(shape, model.rings, transpose),
                                 {p.sums, p.bias_sums, p.counter, p.splits, p.shells, 1, 1}, plan.workspace);
  return plan;
}

}  // namespace radconv::cuda
