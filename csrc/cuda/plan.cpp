#include "cuda/plan.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/cost.h"

namespace radconv::cuda {
namespace {

// ---- tiles and shared memory ----------------------------------------------------------------------------------------

struct Layout {
  std::array<int, 3> tile{};
  std::array<int64_t, 3> halo{};
  int halo_buffers = 0, weight_buffers = 0, block_outputs = 0;
  double clocks = INFINITY;
};

// Places in shared memory, and how much there is in all.
int lay_out(ConvParams& p, const Layout& layout, const KernelSize& size) {
  const int64_t plane = layout.halo[1] * layout.halo[2];
  // kernels of known size have one plane at a time there, two in 3D, each as far from the other as with a whole tile
  const int64_t whole = int64_t{kTileHeight + size.k - 1} * (kTileWidth + size.k - 1);
  const int64_t held = size.any() ? layout.halo[0] * plane : size.depth > 1 ? whole + plane : plane;
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
  p.ring_at = place(2 * ring_bytes(functions_of(size)));
  p.weight_at = place(int64_t{p.weight_buffers} * p.weight_bytes);
  p.basis_at = place(size.any() ? 0 : 4 * int64_t{p.shells} * p.basis_pitch);
  p.gather_at = place(4 * layout.halo[0] * plane);
  p.pixel_at = place(size.any() ? 4 * kPixels : 0);
  end = std::max(end, int64_t{4} * kStageBytes);  // outputs pass through the memory before this
  p.place_at = place(kPlaceBytes);
  return static_cast<int>(std::min(end, kMostInt));
}

std::vector<std::array<int, 3>> possible_tiles(const KernelSize& size) {
  if (!size.any()) return {{1, kTileHeight, kTileWidth}, {1, kTileHeight / 2, kTileWidth}};
  return tiles_of(kPixels);
}

// The fastest tile whose halo fits, by cost.h, with as many buffers and outputs as there is room for.
Layout choose_layout(ConvParams& p, const AxisPlans& axes, const ConvShape& shape, const RingModel& model,
                     Format format, const KernelSize& size, const Card& card) {
  const int outputs = static_cast<int>(std::min<int64_t>(round_up(p.outputs, 16), kMostOutputs));
  const int64_t taps = taps_of(model);
  Layout best;
  int64_t smallest = -1;
  for (const auto& tile : possible_tiles(size)) {
    Layout layout;
    layout.tile = tile;
    layout.halo = halo_of(axes, tile);
    int64_t tiles = shape.batch * p.groups, pixels = 1;
    for (int axis = 0; axis < 3; ++axis) {
      layout.halo[axis] = std::min(layout.halo[axis], kMostInt);
      tiles *= axes[axis].classes * ceil_div(ceil_div(p.out_size[axis], axes[axis].classes), tile[axis]);
      pixels = std::min(pixels * layout.halo[axis], int64_t{1} << 40);
    }
    constexpr int kBuffers[][2] = {{2, 2}, {1, 2}, {1, 1}};
    bool fits = false;
    for (int narrow = 0; narrow < 2 && !fits; ++narrow)
      for (const auto& buffers : kBuffers) {
        layout.halo_buffers = buffers[0];
        layout.weight_buffers = buffers[1];
        layout.block_outputs = narrow ? std::min(outputs, 64) : outputs;
        const int64_t needed = pixels > kMostInt / 256 ? kMostInt : lay_out(p, layout, size);
        if (smallest < 0 || needed < smallest) smallest = needed;
        fits = needed <= card.shared;
        if (fits) break;
      }
    if (!fits) continue;
    // of each tile that a block of a kernel of any size may have, product and rings take the same time
    const int64_t worked = size.any() ? kPixels : int64_t{tile[1]} * tile[2];
    const int chunk = kPixelBytes / p.item;
    const Stage stage{format, worked, pixels, taps, size.k, p.shells, p.per_pass, layout.block_outputs, p.steps, chunk};
    layout.clocks =
        waves(tiles * ceil_div(p.outputs, layout.block_outputs), card.multiprocessors) * block_clocks(stage);
    if (layout.clocks < best.clocks) best = layout;
  }
  if (best.clocks == INFINITY)
    throw Unservable("the pixels that one output meets take " + std::to_string(smallest) +
                     " bytes of shared memory, a block of this card has " + std::to_string(card.shared));
  return best;
}

}  // namespace

Plan make_plan(const ConvShape& given, const RingModel& model, bool transpose, bool exact, const Strides& x,
               const Strides& y, const Card& card) {
  const int rows = std::min(model.rings, model.buckets);
  const int64_t doubles = int64_t{model.rings} * rows + int64_t{std::max(model.rings, rows)} * model.buckets;
  if (doubles > kMostPrepDoubles)
    throw Unservable("a profile of " + std::to_string(model.rings) + " rings by " + std::to_string(model.buckets) +
                     " shells is larger than one block holds");
  const int chunk = kPixelBytes / item_bytes(given.dtype);
  const int merged = merged_groups(given, chunk);
  const ConvShape shape = merge_groups(given, merged);
  const AxisPlans axes = plan_axes(shape);
  Chosen chosen = choose_kernel(shape, model, axes);
  if (rows > functions_of(chosen.size)) chosen = any_size(model);
  const bool any = chosen.size.any();

  Plan plan;
  plan.size = chosen.size;
  plan.format = format_of(shape.dtype, exact);
  ConvParams& p = plan.conv;
  describe(p, shape, axes, x, static_cast<int>(chosen.columns.size()));
  std::copy(std::begin(y.of), std::end(y.of), p.y_strides);
  p.outputs = as_int(shape.out_per_group, "the number of output channels");
  p.passes = any ? static_cast<int>(ceil_div(rows, kTableFunctions)) : 1;
  p.per_pass = any ? static_cast<int>(ceil_div(rows, p.passes)) : functions_of(chosen.size);
  const int slot = any ? kTableFunctions : static_cast<int>(round_up(p.per_pass, 4));
  p.basis_pitch = p.passes * slot;
  const int chunks = static_cast<int>(ceil_div(p.channels, chunk));
  p.steps = as_int(int64_t{chunks} * p.passes, "the number of steps");

  const Layout layout = choose_layout(p, axes, shape, model, plan.format, chosen.size, card);
  plan.shared = lay_out(p, layout, chosen.size);
  plan.clocks = std::max(layout.clocks, memory_clocks(given, card));
  plan.dense_clocks = dense_clocks(given, plan.format, card);
  p.out_blocks = static_cast<int>(ceil_div(p.outputs, p.block_outputs));
  const int64_t tiles = set_tile(p, axes, layout.tile);
  p.plane = p.halo[1] * p.halo[2] * (any ? p.halo[0] : 1);
  plan.blocks = static_cast<unsigned>(as_int(shape.batch * tiles * p.groups * p.out_blocks, "the number of blocks"));
  check_offsets(p);

  Tables tables;
  PrepParams& q = plan.prep;
  q.profile = describe_profile(model, chosen.columns, tables);
  q.weights = describe_weights(given, model.rings, transpose);
  tabulate(p, tables, shape, model, axes, any);
  plan.tables = tables.take();

  p.weights = round_up(4 * int64_t{p.shells} * p.basis_pitch, 256);
  plan.workspace = p.weights + int64_t{p.groups} * p.out_blocks * p.steps * p.weight_bytes;
  q.rows = rows;
  q.basis_pitch = p.basis_pitch;
  q.slot = slot;
  q.per_pass = p.per_pass;
  q.channels = p.channels;
  q.outputs = p.outputs;
  q.groups = p.groups;
  q.merged = merged;
  q.out_blocks = p.out_blocks;
  q.block_outputs = p.block_outputs;
  q.chunks = chunks;
  q.passes = p.passes;
  q.folded = p.weights;
  q.format = plan.format;
  plan.prep_shared = static_cast<int>(8 * doubles);
  const int64_t pairs = int64_t{p.groups} * p.out_blocks * chunks * p.block_outputs * chunk;
  plan.prep_blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(pairs, kPrepThreads), 1, 512));
  return plan;
}

}  // namespace radconv::cuda
